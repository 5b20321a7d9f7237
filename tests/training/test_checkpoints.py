"""Checkpoints: exact, whole or not there, the same for one process and for many. Run as a script, a part of these tests."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from run_scripts import TEST_FOLDERS, run_file
from safetensors import safe_open
from safetensors.torch import load_file

from diffusers_videogpt.training.checkpoints import (
    RunParts,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    refuse_other_run,
    save_checkpoint,
)
from diffusers_videogpt.training.objective import next_clip_loss
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


TINY = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "pos_embed_max_size": 16}
BATCH_SIZE = 4
FIELDS = {"transformer": {"num_layers": 2, "patch_size": 2}, "clips": "random", "interval": (4, 12)}


def make_optimizers(model, kind):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in model.transformer_blocks.parameters() if p.ndim == 2]
    if kind == "adamw8bit":
        import bitsandbytes

        return [bitsandbytes.optim.AdamW8bit(trained, lr=1e-2, min_8bit_size=512)]
    if kind == "muon":
        taken = {id(p) for p in matrices}
        others = [p for p in trained if id(p) not in taken]
        return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(others, lr=1e-2)]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2]},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)]


def make_run(seed=0, optimizer="adamw", lora=False, accelerator=None, **config):
    """A training in progress: everything that a checkpoint holds. Two of different `seed` have nothing in common."""
    accelerator = accelerator or Accelerator()
    model = VideoGPTTransformerModel(**TINY | {"rope_long_factor": None} | config)
    model.init_weights(torch.Generator().manual_seed(0 if lora else seed))
    if lora:
        torch.manual_seed(seed)
        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model, *optimizers = accelerator.prepare(model.train(), *make_optimizers(model, optimizer))
    schedulers = [get_scheduler("cosine", o.optimizer, num_warmup_steps=2, num_training_steps=10) for o in optimizers]
    ema = EMAModel([p for p in model.parameters() if p.requires_grad], decay=0.9)
    return SimpleNamespace(accelerator=accelerator, model=model, optimizers=optimizers, schedulers=schedulers, ema=ema)


def train(run, first_step, last_step):
    """Losses of the steps, whose latents, clips and noise follow from the step alone."""
    losses = []
    for step in range(first_step, last_step):
        latents = torch.randn(BATCH_SIZE, 4, 4, 4, 4, generator=torch.Generator().manual_seed(step))
        generators = [torch.Generator().manual_seed(100 * step + slot) for slot in range(BATCH_SIZE)]
        mine = slice(run.accelerator.process_index, None, run.accelerator.num_processes)
        clips = [[1, 3], [2, 2], [1, 1, 2], [4]]
        loss = next_clip_loss(run.model, latents[mine], clip_lengths=clips[mine], generator=generators[mine])
        run.accelerator.backward(loss)
        for optimizer, scheduler in zip(run.optimizers, run.schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        run.ema.step([p for p in run.model.parameters() if p.requires_grad])
        losses.append(run.accelerator.reduce(loss.detach(), "mean").item())
    return losses


def parts_of(run, trainable_only=False):
    return RunParts(**vars(run), trainable_only=trainable_only)


def save(run, folder, step, trainable_only=False, **kwargs):
    return save_checkpoint(
        folder, step, parts=parts_of(run, trainable_only), state={"step": step, "run": FIELDS}, **kwargs
    )


def load(run, path, expected=FIELDS, trainable_only=False):
    return load_checkpoint(path, parts_of(run, trainable_only), expected=expected)


def draws():
    return [random.random(), random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()]  # noqa: NPY002


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def tensors_of(path):
    return {name: content for name, content in files_of(path).items() if name.endswith(".safetensors")}


@contextmanager
def full_disk():
    """No file can grow beyond 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw8bit"])
def test_a_resumed_run_is_bit_for_bit_the_run_that_went_on(tmp_path, optimizer):
    run = make_run(optimizer=optimizer)
    train(run, 0, 2)
    first = save(run, tmp_path, 2)
    straight = [draws(), train(run, 2, 4)]
    straight_files = files_of(save(run, tmp_path / "straight", 4))

    resumed = make_run(seed=1, optimizer=optimizer)
    train(resumed, 7, 8)  # what the optimizer held before is replaced
    assert load(resumed, first) == {"step": 2, "run": json.loads(json.dumps(FIELDS))}
    assert [draws(), train(resumed, 2, 4)] == straight
    assert files_of(save(resumed, tmp_path / "resumed", 4)) == straight_files


def test_the_files_hold_what_is_trained(tmp_path):
    """Against the objects themselves, not through another load."""
    run = make_run()
    train(run, 0, 2)
    path = save(run, tmp_path, 2)
    weights, averages = load_file(path / "model.safetensors"), load_file(path / "ema.safetensors")
    moments = load_file(path / "optimizer-0.safetensors")
    params = dict(run.model.named_parameters())
    assert weights.keys() == params.keys() == averages.keys()
    for (name, param), average in zip(params.items(), run.ema.shadow_params, strict=True):
        assert torch.equal(weights[name], param), name
        assert torch.equal(averages[name], average), name
        assert torch.equal(moments[f"{name}.exp_avg_sq"], run.optimizers[0].state[param]["exp_avg_sq"]), name
    assert not torch.equal(averages["proj_out.bias"], weights["proj_out.bias"])


def test_a_compiled_model_has_the_names_of_one_that_is_not(tmp_path):
    run = make_run()
    train(run, 0, 1)
    plain = tensors_of(save(run, tmp_path, 1))
    run.model = torch.compile(run.model)
    assert tensors_of(save(run, tmp_path, 2)) == plain


def test_of_adapters_only_what_is_trained_is_kept(tmp_path):
    run = make_run(lora=True)
    train(run, 0, 2)
    path = save(run, tmp_path, 2, trainable_only=True)
    with safe_open(path / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * 2 * 2
    assert all("lora_" in name for name in names)

    resumed = make_run(seed=1, lora=True)
    load(resumed, path, trainable_only=True)
    assert train(resumed, 2, 4) == train(run, 2, 4)


def test_the_latest_is_the_highest_step_that_is_complete(tmp_path):
    run = make_run()
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (8, 9, 10, 11, 12):
        save(run, tmp_path, step)
    paths = [tmp_path / f"checkpoint-{step}" for step in (9, 10, 11, 12)]
    (tmp_path / "checkpoint-best").mkdir()
    paths[-1].rename(tmp_path / "checkpoint-12.partial")
    assert latest_checkpoint(tmp_path) == paths[2]
    (paths[2] / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) == paths[1]
    os.truncate(paths[1] / "ema.safetensors", 1000)
    assert latest_checkpoint(tmp_path) == paths[0]
    (paths[0] / "optimizer-0.safetensors").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-8"


def test_beyond_the_limit_the_lowest_steps_go(tmp_path):
    run = make_run()
    for step in (7, 8, 9):
        save(run, tmp_path, step, total_limit=4)
    assert len(list(tmp_path.iterdir())) == 3
    for step in (10, 100):
        save(run, tmp_path, step, total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]
    # The one just written stays, also where an earlier run left later ones.
    save(run, tmp_path, 5, total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    # Not what another program left under such a name.
    (tmp_path / "checkpoint-1").mkdir()
    save(run, tmp_path, 6, total_limit=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-6"]


def test_where_a_run_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, folder, other = make_run(), tmp_path / "run", tmp_path / "other"
    for wanted in (None, "latest"):
        assert find_checkpoint(folder, wanted) is None
    for step in (2, 10):
        save(run, folder, step)
    last = folder / "checkpoint-10"
    for wanted in ("latest", last, "checkpoint-10", "run/checkpoint-10"):
        assert find_checkpoint(folder, wanted).resolve() == last
    with pytest.raises(SystemExit, match=r"already holds checkpoint-2, checkpoint-10, .* choose another --output_dir"):
        find_checkpoint(folder, None)
    with pytest.raises(SystemExit, match="checkpoint-10 is later than checkpoint-2"):
        find_checkpoint(folder, "checkpoint-2")
    # From elsewhere, and into a folder that holds something else
    assert find_checkpoint(other, "run/checkpoint-2").resolve() == folder / "checkpoint-2"
    other.mkdir()
    for name in ("latents", "features", "checkpoint-best"):
        (other / name).mkdir()
    assert find_checkpoint(other, None) is None
    for name in ("model_index.json", "config.json", "pytorch_lora_weights.safetensors"):
        (other / name).touch()
        for wanted in (None, "latest", "run/checkpoint-2"):
            with pytest.raises(SystemExit, match=f"other already holds {name}"):
                find_checkpoint(other, wanted)
        (other / name).unlink()
    (folder / "model_index.json").touch()  # a run that ended goes on if asked to
    assert find_checkpoint(folder, "latest") == last


def test_a_step_saved_again_replaces_the_first(tmp_path):
    run = make_run()
    before = files_of(save(run, tmp_path, 2))
    train(run, 0, 2)
    after = files_of(save(run, tmp_path, 2))
    assert before["model.safetensors"] != after["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_full_disk_leaves_the_checkpoints_before_and_no_debris(tmp_path):
    run = make_run()
    before = files_of(save(run, tmp_path, 1, total_limit=1))
    train(run, 0, 1)
    with full_disk(), pytest.raises(OSError, match="step 2 could not be written .* make room there"):
        save(run, tmp_path, 2, total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert files_of(latest_checkpoint(tmp_path)) == before
    save(run, tmp_path, 2, total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_state_that_json_cannot_hold_leaves_no_debris(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, 1, parts=parts_of(make_run()), state={"run": {}, "loss": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_deepspeed_is_refused(tmp_path):
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match="train with FSDP2"):
        save(SimpleNamespace(**vars(make_run()) | {"accelerator": accelerator}), tmp_path, 1)


def test_another_configuration_is_refused_by_field(tmp_path):
    path = save(make_run(), tmp_path, 1)
    run = make_run(seed=1)
    before = files_of(save(run, tmp_path / "before", 1))
    expected = FIELDS | {"transformer": {"num_layers": 3, "patch_size": 2}, "seed": 5, "interval": [4, 12]}
    with pytest.raises(ValueError, match="of another configuration") as caught:
        load(run, path, expected)
    assert "seed: nothing there, 5 now; transformer.num_layers: 2 there, 3 now." in str(caught.value)
    assert "interval" not in str(caught.value) and "hashes" not in str(caught.value)
    assert files_of(save(run, tmp_path / "after", 1)) == before


def test_changed_files_are_refused_as_such(tmp_path):
    run = make_run()
    path = save_checkpoint(
        tmp_path, 1, parts=parts_of(run), state={"step": 1, "run": FIELDS | {"content.sources": "ab"}}
    )
    with pytest.raises(ValueError, match="content.sources: ab there, cd now .content: hashes of what is in the files"):
        load(run, path, FIELDS | {"content.sources": "cd"})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ffn_dim": 64}, r"linear_in.weight \[64, 32\] there, \[128, 32\] here"),
        ({"optimizer": "muon"}, r"other optimizers \(AdamW there, Muon and AdamW here\)"),
        ({"optimizer": "adamw8bit"}, r"other optimizers \(AdamW there, AdamW8bit here\)"),
        ({"num_classes": 3}, "the same for other parameters"),
    ],
)
def test_another_model_or_optimizer_is_refused(tmp_path, change, message):
    path = save(make_run(), tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        load(make_run(**change), path)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("weight_decay", 0.5, "weight_decay: 0.01 there, 0.5 now"),
        ("initial_lr", 0.5, "learning_rate: 0.01 there, 0.5 now"),
        ("betas", (0.5, 0.9), r"betas: \[0.9, 0.999\] there, \[0.5, 0.9\] now"),
        ("decay", 0.5, "ema_decay: 0.9 there, 0.5 now"),
        ("lr", 0.5, None),  # where another schedule would have come to
    ],
)
def test_other_numbers_of_the_optimizer_are_refused_by_name(tmp_path, name, value, message):
    path, run = save(make_run(), tmp_path, 1), make_run()
    if name == "decay":
        run.ema.decay = value
    else:
        run.optimizers[0].param_groups[0][name] = value
    if message is None:
        load(run, path)
        return
    with pytest.raises(ValueError, match=message):
        load(run, path)


def test_an_average_must_be_there_or_not_as_before(tmp_path):
    run = make_run()
    path = save(run, tmp_path, 1)
    run.ema = None
    with pytest.raises(ValueError, match=r"made with an average"):
        load(run, path)
    path = save(run, tmp_path, 2)
    with pytest.raises(ValueError, match=r"made without an average"):
        load(make_run(), path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"files": {}},
        {"files": []},
        {"files": {"model.safetensors": 3}},
        {"files": {"../x": {"size": 1}}},
        [],
        None,
    ],
    ids=json.dumps,
)
def test_a_manifest_that_does_not_vouch_for_the_files_is_no_checkpoint(tmp_path, content):
    run = make_run()
    path = save(run, tmp_path, 2)
    assert latest_checkpoint(tmp_path) == path
    (path / "manifest.json").write_text(json.dumps(content))
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match=r"no complete checkpoint: manifest\.json (is damaged|does not name model)"):
        load(run, path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = save(make_run(), tmp_path, 1)
    content = bytearray((path / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "ema.safetensors").write_bytes(content)
    assert latest_checkpoint(tmp_path) == path  # of the same size: only reading it tells
    with pytest.raises(ValueError, match=r"ema.safetensors is not what was written \(SHA-256\)"):
        load(make_run(), path)
    (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint: manifest.json is missing"):
        load(make_run(), path)


def test_a_pickle_in_the_folder_is_never_executed(tmp_path, malicious_pickle):
    marker = tmp_path / "executed"
    run = make_run()
    path = save(run, tmp_path, 1)
    attack = malicious_pickle(marker)
    names = ("random_states_0.pkl", "optimizer.bin", "scheduler.bin", "pytorch_model.bin", "model.pt", "state.pkl")
    for name in names:
        (path / name).write_bytes(attack)
    assert latest_checkpoint(tmp_path) == path
    load(run, path)
    # In place of our own files, with a manifest that vouches for it
    size, sha256 = len(attack), hashlib.sha256(attack).hexdigest()
    for name in ("model.safetensors", "optimizer-0.safetensors", "ema.safetensors", "state.json"):
        copy = shutil.copytree(path, tmp_path / f"checkpoint-{name}")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"][name] = {"size": size, "sha256": sha256}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        (copy / name).write_bytes(attack)
        with pytest.raises(ValueError, match=f"{name}' is damaged"):
            load(run, copy)
    assert not marker.exists()
    pickle.loads(attack)
    assert marker.exists()  # it would have told


def test_kill_while_a_checkpoint_is_written(tmp_path):
    num_kills = int(run_file(__file__, "kill", tmp_path, path=TEST_FOLDERS).stdout.split()[-1])
    assert num_kills >= 8  # five files, the folder, its new name, that name in the folder above


def kill_everywhere(folder):
    """Kills a child at every point where something has reached the disk; each time, one of the checkpoints is whole."""
    run = make_run()
    save(run, folder, 1)
    expected = {1: train(run, 1, 2)}
    later = save(run, folder / "later", 2)
    expected[2] = train(run, 2, 3)
    load(run, later)
    num_kills = 0
    while True:
        child = os.fork()
        if child == 0:
            calls = []

            def stop_at_last(call):
                def stopped(*args):
                    if len(calls) == num_kills:  # noqa: B023
                        os.kill(os.getpid(), signal.SIGKILL)
                    calls.append(call)  # noqa: B023
                    return call(*args)

                return stopped

            os.fsync, os.rename = stop_at_last(os.fsync), stop_at_last(os.rename)
            save(run, folder, 2, total_limit=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        num_kills += 1
        found = latest_checkpoint(folder)
        resumed = make_run(seed=1)
        step = load(resumed, found)["step"]
        assert found.name == f"checkpoint-{step}"
        assert train(resumed, step, step + 1) == expected[step]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "later"]
    print(num_kills)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "VideoGPTTransformerBlock,VideoGPTLastTransformerBlock",
}


@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes(tmp_path, environment):
    """One format for one process, DDP and FSDP2: each goes on from what another saved."""
    single = make_run()
    losses = train(single, 0, 2)
    path = save(single, tmp_path / "single", 2)
    losses += train(single, 2, 4)

    run_file(__file__, "two", tmp_path, num_processes=2, path=TEST_FOLDERS, **environment)
    two = json.loads((tmp_path / "losses.json").read_text())
    assert two["straight"] == pytest.approx(losses, abs=1e-5)
    assert two["resumed"] == two["straight"][2:]
    assert files_of(tmp_path / "resumed/checkpoint-4") == files_of(tmp_path / "straight/checkpoint-4")
    # What one process saved, two loaded and saved again
    assert tensors_of(tmp_path / "copied/checkpoint-2") == tensors_of(path)
    # and what two saved, one loads.
    loaded = make_run(seed=1)
    load(loaded, tmp_path / "straight/checkpoint-2")
    assert tensors_of(save(loaded, tmp_path / "back", 2)) == tensors_of(tmp_path / "straight/checkpoint-2")
    assert train(loaded, 2, 4) == pytest.approx(two["resumed"], abs=1e-5)


def make_cpu_accelerator():
    accelerator = Accelerator()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate prepares for FSDP on accelerators only: on the CPU it would silently be DDP.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        assert accelerator.is_fsdp2
    return accelerator


def in_two_processes(folder):
    accelerator = make_cpu_accelerator()
    run = make_run(accelerator=accelerator)
    torch.manual_seed(accelerator.process_index)
    losses = {"straight": train(run, 0, 2)}
    with torch.no_grad():  # leaves parameters unsharded
        next_clip_loss(run.model, torch.zeros(1, 4, 2, 4, 4), clip_lengths=[[1, 1]])
    save(run, folder / "straight", 2)
    next_draws = draws()
    losses["straight"] += train(run, 2, 4)
    save(run, folder / "straight", 4)

    resumed = make_run(seed=1, accelerator=accelerator)
    load(resumed, folder / "straight/checkpoint-2")
    assert draws() == next_draws  # of this process
    losses["resumed"] = train(resumed, 2, 4)
    save(resumed, folder / "resumed", 4)

    load(resumed, folder / "single/checkpoint-2")
    save(resumed, folder / "copied", 2)

    # The main process's trouble is everyone's: none waits for it in vain.
    limit = full_disk() if accelerator.is_main_process else contextmanager(lambda: iter([None]))()
    with limit, pytest.raises(OSError, match="step 6 could not be written"):
        save(resumed, folder / "resumed", 6)
    with pytest.raises(ValueError, match="clips"):
        load(resumed, folder / "single/checkpoint-2", expected=FIELDS | {"clips": "equal:1"})
    if accelerator.is_main_process:
        (folder / "losses.json").write_text(json.dumps(losses))
    accelerator.end_training()


def test_what_diffusers_notes_for_itself_does_not_make_another_run(tmp_path):
    """A checkpoint goes on under a later version of diffusers."""
    saved = {"transformer": {"num_layers": 2, "_diffusers_version": "0.42.1"}, "seed": 0}
    refuse_other_run(
        tmp_path, saved, expected={"transformer": {"num_layers": 2, "_diffusers_version": "0.43.0"}, "seed": 0}
    )
    with pytest.raises(ValueError, match=r"transformer.num_layers: 2 there, 3 now\. Resume"):
        refuse_other_run(tmp_path, saved, expected={"transformer": {"num_layers": 3}, "seed": 0})


if __name__ == "__main__":
    {"kill": kill_everywhere, "two": in_two_processes}[sys.argv[1]](Path(sys.argv[2]))
