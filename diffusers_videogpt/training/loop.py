"""The loop that every training script runs: steps, log, validation, checkpoints, resume, and stopping well.

What a step trains on and its noise follow from the seed and the step, so a run that stopped, for whatever reason, goes on
from its last checkpoint as if it had never stopped.
"""

import argparse
import atexit
import csv
import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, reduce
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm

from ..arguments import natural_int
from ..extras import require
from ..files import written_whole
from .arguments import add_flag, positive_int, share
from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from .feed import LatentFeed, MicroBatch
from .throughput import Throughput


EXIT_ON_SIGTERM = 143  # 128 + SIGTERM, as a shell reports it


# Of diffusers' schedules, those that need nothing but the numbers of steps.
SCHEDULES = [x.value for x in SchedulerType if x != SchedulerType.PIECEWISE_CONSTANT]


def ema_decay(text: str) -> float:
    decay = share(text)
    if decay == 1:
        raise argparse.ArgumentTypeError(
            "an average of 1 stays the weights that training begins with: give less than 1"
        )
    return decay


def add_loop_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--train_batch_size", type=positive_int, default=1, help="videos a micro-batch and process")
    group.add_argument("--gradient_accumulation_steps", type=positive_int, default=1)
    add_flag(group, "--gradient_checkpointing")
    add_flag(group, "--torch_compile", help="compile the transformer's blocks")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's configuration")
    group.add_argument("--max_train_steps", type=positive_int, default=1000)
    group.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    add_flag(group, "--use_8bit_adam", help="AdamW with 8-bit state, by bitsandbytes")
    group.add_argument("--learning_rate", type=float, default=1e-4)
    group.add_argument("--lr_scheduler", choices=SCHEDULES, default="constant_with_warmup")
    group.add_argument("--lr_warmup_steps", type=natural_int, default=1000)
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.95)
    group.add_argument("--adam_weight_decay", type=float, default=0.1)
    group.add_argument("--adam_epsilon", type=float, default=1e-5)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--ema_decay", type=ema_decay, default=0.0, help="0 for no moving average of the weights")

    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, required=True)
    group.add_argument("--logging_steps", type=positive_int, default=20)
    group.add_argument("--report_to", default=None, help="tensorboard, trackio, wandb, …: a tracker of accelerate")
    group.add_argument("--tracker_project_name", default="videogpt")
    group.add_argument("--validation_steps", type=positive_int, default=500, help="between two validation losses")
    group.add_argument("--checkpointing_steps", type=positive_int, default=500)
    group.add_argument("--checkpoints_total_limit", type=positive_int, default=2)
    group.add_argument("--resume_from_checkpoint", help="a checkpoint-N folder, or 'latest'")
    group.add_argument("--dataloader_num_workers", type=natural_int, default=0)


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """What `accelerate launch` configured.

    Raises:
        SystemExit: under DeepSpeed, whose checkpoints are pickles, which this project does not load.
    """
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise SystemExit(
            "DeepSpeed is not supported: use FSDP2, which shards like ZeRO-3 (configs/accelerate/fsdp2.yaml) or like ZeRO-2 "
            "(configs/accelerate/fsdp2_zero2.yaml)."
        )
    if accelerator.distributed_type == DistributedType.FSDP and args.use_8bit_adam:
        raise SystemExit("--use_8bit_adam does not work with FSDP2: bitsandbytes takes no sharded parameters.")
    hold_process_group()
    return accelerator


def hold_process_group() -> None:
    """Keeps the group of the processes, if there is one, to the end of the program.

    Else DDP's reducer may be the last to hold it, and ends it without letting go of Python's lock, for which gloo's own
    thread may be waiting (torch 2.13): processes now and then never ended.
    """
    if torch.distributed.is_initialized():
        groups = [torch.distributed.group.WORLD]
        atexit.register(groups.clear)


def reshard(model: nn.Module) -> None:
    """Frees what FSDP2 keeps gathered after a forward pass without a backward one: the parameters are shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def make_optimizers(model: nn.Module, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for all trainable parameters, or Muon for the matrices of the blocks and AdamW for the rest."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {}
    if args.optimizer == "muon":
        matrices = {name: p for name, p in trainable.items() if "transformer_blocks." in name and p.ndim == 2}
    others = [p for name, p in trainable.items() if name not in matrices]
    groups = [
        {"params": [p for p in others if p.ndim >= 2]},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw_args = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    groups = [group for group in groups if group["params"]]
    if args.use_8bit_adam:
        bitsandbytes = require("bitsandbytes", "8-bit AdamW needs bitsandbytes", extra="train")
        adamw = bitsandbytes.optim.AdamW8bit(groups, **adamw_args)
    else:
        adamw = torch.optim.AdamW(groups, **adamw_args)
    if not matrices:
        return [adamw]
    # Its updates are scaled to the size of AdamW's, so both share the learning rate and the decay.
    muon = torch.optim.Muon(
        matrices.values(), lr=args.learning_rate, weight_decay=args.adam_weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


class TrainingLoop:
    """Trains `model` on the batches of `feed`.

    Args:
        args: the arguments of [`add_loop_arguments`] and the script's own.
        accelerator: from [`make_accelerator`].
        model: the network; what requires gradients is trained.
        feed: what the steps train on.
        loss: `loss(model, batch)`, a scalar, from a [`~feed.MicroBatch`].
        run: flat values that a checkpoint must agree with to be resumed, by name.
        validate: called as `validate(loop, step)` with the averaged weights in place, on all processes, every
            `--validation_steps`; its dictionary of numbers goes into the log and to the tracker.
        trainable_only: checkpoints hold only the trained parameters (adapters).
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        model: nn.Module,
        feed: LatentFeed,
        loss: Callable[[nn.Module, MicroBatch], torch.Tensor],
        run: dict,
        validate: Callable[["TrainingLoop", int], dict[str, float]],
        trainable_only: bool = False,
    ):
        self.args, self.accelerator, self.feed, self.loss = args, accelerator, feed, loss
        self.run_fields, self.validate, self.trainable_only = run, validate, trainable_only
        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if args.torch_compile:
            model.compile_repeated_blocks()
            accelerator.print("--torch_compile: the first step compiles the blocks, which takes minutes")
        optimizers = make_optimizers(model, args)
        self.model, *self.optimizers = accelerator.prepare(model.train(), *optimizers)
        # Not prepared: one step of the schedule is one step of training, however many processes there are.
        self.schedulers = [
            get_scheduler(
                args.lr_scheduler,
                getattr(optimizer, "optimizer", optimizer),
                num_warmup_steps=args.lr_warmup_steps,
                num_training_steps=args.max_train_steps,
            )
            for optimizer in self.optimizers
        ]
        self.ema = None
        if args.ema_decay:
            self.ema = EMAModel(self.trained_parameters(), decay=args.ema_decay)
            self.ema.to(accelerator.device)
        self.log_path = args.output_dir / "train_log.csv"
        self.log, self.losses, self.step = [], [], 0
        self.first_step = 0  # later than 0 in a run that was resumed
        # Asked is this process alone; stopping is what all have agreed on, or one would wait for the others for ever.
        self._stop_asked = self._stopping = False

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def run(self) -> None:
        """Trains from the last checkpoint, if asked to, up to `--max_train_steps`.

        Raises:
                SystemExit: the loss is not finite, with the step and the videos; the folder holds checkpoints of another run;
                or, with code 143, after the checkpoint that SIGTERM asks for.
        """
        args, accelerator = self.args, self.accelerator
        self._resume()
        if accelerator.is_main_process and args.report_to:
            plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in vars(args).items()}
            accelerator.init_trackers(args.tracker_project_name, config=plain)
        previous = signal.signal(signal.SIGTERM, self._ask_to_stop)
        progress = tqdm(
            total=args.max_train_steps, initial=self.step, disable=not accelerator.is_main_process, mininterval=5
        )
        throughput = Throughput(accelerator, accelerator.unwrap_model(self.model))
        batches = iter(self.feed.micro_batches(self.step, args.max_train_steps))
        while self.step < args.max_train_steps:
            self._train_step(batches, throughput)
            progress.update()
            is_last = self.step == args.max_train_steps
            validates = self.step % args.validation_steps == 0 or is_last
            if self.step % args.logging_steps == 0 or validates:
                self._log(throughput, progress, self._validation() if validates else {})
            if self.step % args.checkpointing_steps == 0 or (self._stopping and not is_last):
                self._checkpoint()
            if self._stopping and not is_last:
                accelerator.print(f"stopped at step {self.step}: resume with --resume_from_checkpoint latest")
                accelerator.end_training()
                sys.exit(EXIT_ON_SIGTERM)
        progress.close()
        signal.signal(signal.SIGTERM, previous)

    def _ask_to_stop(self, *_):
        self._stop_asked = True

    def _train_step(self, batches, throughput: Throughput) -> None:
        accelerator, step_losses, names = self.accelerator, [], []
        for _ in range(self.args.gradient_accumulation_steps):
            with throughput.waiting():
                batch = next(batches)
            throughput.count(batch)
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    loss = self.loss(self.model, batch)
                step_losses.append(loss.detach())
                names += batch.ids
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    self._agree(torch.stack(step_losses).mean(), names)
                    accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        for scheduler in self.schedulers:
            scheduler.step()
        if self.ema is not None:
            self.ema.step(self.trained_parameters())
        self.step += 1

    def _agree(self, loss: torch.Tensor, names: Sequence[str]) -> None:
        """Every process learns the mean loss, whether one of them has to stop the run, and whether one was asked to."""
        finite = torch.isfinite(loss)
        numbers = torch.stack(
            [
                torch.where(finite, loss, 0.0).double(),
                (~finite).double(),
                torch.tensor(float(self._stop_asked), dtype=torch.float64, device=loss.device),
            ]
        )
        mean_loss, num_bad, asked = reduce(numbers, reduction="sum").tolist()
        if num_bad:
            mine = None if finite else f"process {self.accelerator.process_index}: {', '.join(names)}"
            bad = [mine]
            if self.accelerator.num_processes > 1:
                bad = [None] * self.accelerator.num_processes
                torch.distributed.all_gather_object(bad, mine)
            raise SystemExit(
                f"The loss is not finite at step {self.step + 1}; no weight was changed by it. Its videos: "
                f"{'; '.join(b for b in bad if b)}. Look at these files, or lower the learning rate; "
                "--resume_from_checkpoint latest goes on from the last checkpoint."
            )
        self.losses.append(mean_loss / self.accelerator.num_processes)
        self._stopping = asked > 0

    def _log(self, throughput: Throughput, progress: tqdm, validation: dict[str, float]) -> None:
        row = {
            "step": self.step,
            "loss": repr(math.fsum(self.losses) / len(self.losses)),
            "learning_rate": repr(self.schedulers[0].get_last_lr()[0]),
            "validation_loss": repr(validation["loss"]) if "loss" in validation else "",
        }
        self.losses = []
        timing = throughput.read()
        row |= {name: f"{value:.4g}" for name, value in timing.items()}
        self.log.append(row)
        if self.accelerator.is_main_process:
            with written_whole(self.log_path) as unfinished, unfinished.open("w", newline="") as file:
                # Earlier rows may be of another device, with other columns.
                writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for r in self.log for name in r)))
                writer.writeheader()
                writer.writerows(self.log)
        numbers = {"train/loss": float(row["loss"]), "train/learning_rate": float(row["learning_rate"])}
        numbers |= {f"speed/{name}": value for name, value in timing.items()}
        numbers |= {f"validation/{name}": value for name, value in validation.items()}
        self.accelerator.log(numbers, step=self.step)
        progress.set_postfix(loss=f"{numbers['train/loss']:.4f}", lr=f"{numbers['train/learning_rate']:.1e}", **timing)

    def _validation(self) -> dict[str, float]:
        """The script's validation, with the averaged weights in place and no gradient."""
        self.model.eval()
        if self.ema is not None:
            self.ema.store(self.trained_parameters())
            self.ema.copy_to(self.trained_parameters())
        with torch.no_grad():
            numbers = self.validate(self, self.step)
        reshard(self.model)
        if self.ema is not None:
            self.ema.restore(self.trained_parameters())
        self.model.train()
        return numbers

    def _state(self) -> dict:
        return {
            "step": self.step,
            "losses": self.losses,
            "run": self.run_fields,
            "feed": self.feed.source.state_dict(),
        }

    def _parts(self) -> dict:
        return {
            "accelerator": self.accelerator,
            "model": self.model,
            "optimizers": self.optimizers,
            "schedulers": self.schedulers,
            "ema": self.ema,
        }

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.args.output_dir,
            self.step,
            **self._parts(),
            state=self._state(),
            total_limit=self.args.checkpoints_total_limit,
            trainable_only=self.trainable_only,
        )

    def _resume(self) -> None:
        path = find_checkpoint(self.args.output_dir, self.args.resume_from_checkpoint)
        if path is None:
            if self.args.resume_from_checkpoint is not None:
                self.accelerator.print(f"no complete checkpoint in {self.args.output_dir}: starting at step 0")
            return
        state = load_checkpoint(path, **self._parts(), expected=self.run_fields, trainable_only=self.trainable_only)
        self.step, self.losses = state["step"], state["losses"]
        self.first_step = self.step
        self.feed.source.load_state_dict(state["feed"])
        if self.log_path.exists():
            with self.log_path.open(newline="") as file:
                self.log = [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]
        self.accelerator.print(f"resumed from {path}")

    def trained_state_dict(self) -> dict[str, torch.Tensor]:
        """The full weights on the CPU of the main process, averaged if there is an average."""
        reshard(self.model)
        if self.ema is not None:
            self.ema.copy_to(self.trained_parameters())
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.accelerator.unwrap_model(self.model), options=options)


def command_of(script: str) -> str:
    """The command line that runs `script` again, for the record."""
    return f"accelerate launch {script} {shlex.join(sys.argv[1:])}"


def train_model(
    args: argparse.Namespace, accelerator: Accelerator, feed: LatentFeed, training, trainable_only: bool = False
) -> nn.Module | None:
    """Trains `training.model` by its `loss`, `validate` and `run_fields`; returns its copy with the trained weights, in
    the main process alone."""
    loop = TrainingLoop(
        args,
        accelerator,
        training.model,
        feed,
        training.loss,
        run=training.run_fields() | feed.run_fields(),
        validate=training.validate,
        trainable_only=trainable_only,
    )
    loop.run()
    weights = loop.trained_state_dict()
    if not accelerator.is_main_process:
        return None
    model = type(training.model).from_config(json.loads(training.model.to_json_string()))
    model.load_state_dict(weights)
    return model.eval()
