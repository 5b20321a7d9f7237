"""Runs a training script (the first argument) under FSDP2 on the CPU, where accelerate by itself would fall back to DDP."""

import os
import runpy
import sys


os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "VideoGPTTransformerBlock,VideoGPTLastTransformerBlock",
}

from accelerate import Accelerator, PartialState  # noqa: E402
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin  # noqa: E402


make = Accelerator.__init__


def make_with_fsdp2(self, *args, **kwargs):
    make(self, *args, **kwargs)
    PartialState._shared_state["distributed_type"] = self.state.distributed_type = DistributedType.FSDP
    self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    self.print("FSDP2 on the CPU")


Accelerator.__init__ = make_with_fsdp2
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
