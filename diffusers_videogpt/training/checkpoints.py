"""Checkpoints of a training run: whole or not there, and the same for any number of processes.

    checkpoint-500/
        model.safetensors           full tensors, by name
        optimizer-0.safetensors     "<parameter>.<what>": exp_avg, exp_avg_sq, step, …; one file an optimizer
        ema.safetensors             averaged parameters, by name
        state.json                  everything that is no tensor: step, schedules, groups of parameters, random states
        manifest.json               names, sizes and SHA-256 of the others; written last

Only safetensors and JSON are read, and only the files that the manifest names: nothing is unpickled.
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..files import hash_file, path_inside, read_json, wait_for_disk, write_json
from ..weights import save_tensors


MODEL, OPTIMIZER, EMA = "model.safetensors", "optimizer-{}.safetensors", "ema.safetensors"
STATE, MANIFEST = "state.json", "manifest.json"
# What a finished run has in its folder: a pipeline, one model, or an adapter.
MODELS = ("model_index.json", "config.json", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True)
class RunParts:
    """What is trained and what trains it: all that has a state of its own.

    Attributes:
        model, optimizers, schedulers, ema: prepared by `accelerator` or not. The average is over the parameters that
            require gradients, in the model's order.
        trainable_only: leave out weights that are not trained (a base under adapters).
    """

    accelerator: Accelerator
    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]
    ema: EMAModel | None = None
    trainable_only: bool = False


def save_checkpoint(
    output_dir: str | Path,
    step: int,
    *,
    parts: RunParts,
    state: dict[str, Any],
    total_limit: int | None = None,
    best_step: int | None = None,
) -> Path:
    """Writes `output_dir/checkpoint-<step>`. Called by all processes; the main one writes.

    The files are written into `checkpoint-<step>.partial`, which is renamed when they are complete and on the disk; what
    earlier kills left in such folders is removed first. Beyond `total_limit`, the checkpoints of the lowest steps are
    removed, after the new one is complete.

    Args:
        output_dir: a folder that all processes see.
        parts: of the run, as they are now.
        state: what else the run needs, as JSON can hold it (tuples come back as lists). `state["run"]` tells what a run
            that resumes must agree with.
        total_limit: checkpoints kept, at least 1; all if `None`.
        best_step: of a checkpoint that is kept beside these.

    Returns:
        The folder.

    Raises:
        OSError: it could not be written, for example as the disk is full. Nothing is left of it, and the checkpoints
            before are as they were.
        TypeError: `state` holds what JSON can't.
        ValueError: the run is under DeepSpeed.
    """
    accelerator, ema = parts.accelerator, parts.ema
    output_dir, network = Path(output_dir), _network(accelerator, parts.model)
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f"checkpoint-{step}.partial"

    def write(name, tensors):
        full = _gather(accelerator, tensors)
        _on_main(accelerator, lambda: save_tensors(partial / name, full))

    try:
        _on_main(accelerator, lambda: _start(partial))
        weights = _weights(network, parts.trainable_only)
        write(MODEL, weights)
        packed = [_pack_optimizer(network, optimizer) for optimizer in parts.optimizers]
        for index, (tensors, _) in enumerate(packed):
            write(OPTIMIZER.format(index), tensors)
        if ema is not None:
            write(EMA, _averages(network, ema))
        notes = {
            "state": state,
            "optimizers": [rest for _, rest in packed],
            "schedulers": [scheduler.state_dict() for scheduler in parts.schedulers],
            "ema": None if ema is None else {k: v for k, v in ema.state_dict().items() if k != "shadow_params"},
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
            "random": gather_object([_random_state()]),
        }
        _on_main(accelerator, lambda: _finish(partial, final, notes=notes))
    except Exception as error:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                f"The checkpoint of step {step} could not be written into '{output_dir}' ({error}). The checkpoints before "
                "it are as they were: make room there, and go on from the latest."
            ) from error
        raise
    best = None if best_step is None else output_dir / f"checkpoint-{best_step}"
    _on_main(accelerator, lambda: _remove_oldest(output_dir, total_limit, kept={final, best}))
    return final


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step: its manifest is there, and every file has the size it tells."""
    found = sorted(_checkpoints(output_dir), key=_step, reverse=True)
    return next((path for path in found if not _problems(path)), None)


def refuse_existing(output_dir: str | Path) -> None:
    """
    Raises:
        SystemExit: a model or checkpoints lie in the folder, which a new run would replace.
    """
    found = [path.name for path in sorted(_checkpoints(output_dir), key=_step)]
    found += [name for name in MODELS if (Path(output_dir) / name).exists()]
    if found:
        raise SystemExit(
            f"{output_dir} already holds {', '.join(found)}, of an earlier run: go on with it by --resume_from_checkpoint "
            "latest, or choose another --output_dir. Nothing was changed."
        )


def find_checkpoint(output_dir: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint that a run into `output_dir` goes on from, or `None` where it starts at step 0.

    Args:
        wanted: "latest", a path, the name of a folder in `output_dir`, or `None` for a new run.

    Raises:
        SystemExit: what lies in `output_dir` would be replaced, by a new run or by one that goes on from elsewhere, or
            from an earlier checkpoint of the same run.
    """
    output_dir, latest = Path(output_dir), latest_checkpoint(output_dir)
    if wanted == "latest" and latest is not None:
        return latest
    if wanted in (None, "latest"):
        refuse_existing(output_dir)
        return None
    path = Path(wanted) if Path(wanted).exists() else output_dir / wanted
    if not path.is_dir():
        raise SystemExit(f"--resume_from_checkpoint {wanted}: there is no such folder, here or in {output_dir}.")
    if path.resolve() not in [found.resolve() for found in _checkpoints(output_dir)]:
        refuse_existing(output_dir)
    elif latest is not None and _step(path) < _step(latest):
        raise SystemExit(
            f"{latest} is later than {path.name}: what goes on from the earlier one would mix with it. Move the later ones "
            "away, or choose another --output_dir."
        )
    return path


def load_checkpoint(path: str | Path, parts: RunParts, *, expected: dict[str, Any]) -> dict[str, Any]:
    """Brings all `parts` back to what it was when `path` was saved; returns the `state` that was given to it.

    The number of processes and how they share the model may be another. Then the values are still the same ones, but each
    process's own random state goes only to a process of the same number.

    Args:
        expected: must equal `state["run"]` of the checkpoint. "content.…" counts where both have it, and then in place of
            the field named by the rest.

    Raises:
        ValueError: the checkpoint is incomplete or damaged, or of another configuration: the message names the fields
            with old and new values. Nothing was loaded.
    """
    accelerator, ema, optimizers = parts.accelerator, parts.ema, parts.optimizers
    path, network = Path(path), _network(accelerator, parts.model)
    try:
        notes = _on_main(accelerator, lambda: _read_notes(path, expected))
        weights = _weights(network, parts.trainable_only)
        targets = {MODEL: weights}
        if ema is not None:
            targets[EMA] = _averages(network, ema)
        here = [_pack_optimizer(network, optimizer)[1] for optimizer in optimizers]
        saved_groups, groups = (
            [(rest["class"], [group["params"] for group in rest["groups"]]) for rest in packed]
            for packed in (notes["optimizers"], here)
        )
        if saved_groups != groups:
            raise ValueError(
                f"'{path}' was made with other optimizers ({_classes(notes['optimizers'])} there, {_classes(here)} here), or "
                "with the same for other parameters: resume with those it was made with."
            )
        # "lr" is where the schedule has come to, which may be another one: `initial_lr` is what it was given.
        names = {"initial_lr": "learning_rate"}
        changed = [
            f"{names.get(name, name)}: {old[name]} there, {new[name]} now"
            for saved, mine in zip(notes["optimizers"], here, strict=True)
            for old, new in zip(saved["groups"], json.loads(json.dumps(mine["groups"])), strict=True)
            for name in sorted(old.keys() & new.keys() - {"params", "lr"})
            if old[name] != new[name]
        ]
        if ema is not None and notes["ema"] is not None and notes["ema"]["decay"] != ema.decay:
            changed.append(f"ema_decay: {notes['ema']['decay']} there, {ema.decay} now")
        if changed:
            raise ValueError(
                f"'{path}' goes on with the optimizer that it was made with, and these differ: {'; '.join(dict.fromkeys(changed))}. "
                "Give the same, or start a new run from its weights."
            )
        if (ema is None) != (notes["ema"] is None):
            raise ValueError(
                f"'{path}' was made {'with' if ema is None else 'without'} an average of the weights (EMA): resume the same way."
            )
        for name, tensors in targets.items():
            _check_shapes(path / name, tensors)
        for index in range(len(optimizers)):
            _open(path / OPTIMIZER.format(index))

        with torch.no_grad():
            for name, tensors in targets.items():
                with _open(path / name) as file:
                    for key, tensor in tensors.items():
                        tensor.copy_(_place(file.get_tensor(key), tensor))
        for index, (optimizer, rest) in enumerate(zip(optimizers, notes["optimizers"], strict=True)):
            with _open(path / OPTIMIZER.format(index)) as file:
                _unpack_optimizer(network, optimizer, file=file, rest=rest)
        for scheduler, values in zip(parts.schedulers, notes["schedulers"], strict=True):
            scheduler.load_state_dict(values)
        if ema is not None:
            ema.load_state_dict(notes["ema"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(notes["scaler"])
        if accelerator.process_index < len(notes["random"]):
            _set_random_state(notes["random"][accelerator.process_index])
        return notes["state"]
    # What a file of another writer may be guilty of; `_read_notes` has found out already whether it is the one written.
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"'{path}' holds other values than a checkpoint does ({type(error).__name__}: {error}): resume from another one."
        ) from error


def load_weights(path: str | Path, parts: RunParts) -> None:
    """Puts the weights of a checkpoint of this run in place, and their average if there is one; nothing else is changed.

    Raises:
        ValueError: a file is damaged, or of another model.
    """
    path, network = Path(path), _network(parts.accelerator, parts.model)
    targets = {MODEL: _weights(network, parts.trainable_only)}
    if parts.ema is not None:
        targets[EMA] = _averages(network, parts.ema)
    with torch.no_grad():
        for name, tensors in targets.items():
            _check_shapes(path / name, tensors)
            with _open(path / name) as file:
                for key, tensor in tensors.items():
                    tensor.copy_(_place(file.get_tensor(key), tensor))


def _network(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "Under DeepSpeed the state of the optimizer is in DeepSpeed's own partitions, which can't be saved here: train "
            "with FSDP2, which shards the same."
        )
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def _on_main(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """What `action` returns or raises in the main process, in every process: none waits for one that has given up."""
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def _weights(network: nn.Module, trainable_only: bool) -> dict[str, torch.Tensor]:
    # Before the parameters are asked for: where a pass without gradients left them whole, FSDP2 shards them again here.
    weights = network.state_dict()
    trained = {name for name, param in network.named_parameters() if param.requires_grad}
    return {name: tensor for name, tensor in weights.items() if name in trained or not trainable_only}


def _averages(network: nn.Module, ema: EMAModel) -> dict[str, torch.Tensor]:
    names = [name for name, param in network.named_parameters() if param.requires_grad]
    return dict(zip(names, ema.shadow_params, strict=True))


def _pack_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """Its tensors as "<parameter>.<what>", and the rest as JSON can hold it, with names in place of parameters."""
    names = {param: name for name, param in network.named_parameters()}
    tensors, numbers = {}, {}
    for param, values in optimizer.state.items():
        for key, value in values.items():
            target = tensors if isinstance(value, torch.Tensor) else numbers
            target[f"{names[param]}.{key}"] = value
    groups = [group | {"params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
    kind = type(getattr(optimizer, "optimizer", optimizer)).__name__
    return tensors, {"class": kind, "numbers": numbers, "groups": groups}


def _classes(packed: Sequence[dict]) -> str:
    return " and ".join(rest["class"] for rest in packed)


def _unpack_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, *, file: safe_open, rest: dict) -> None:
    params = dict(network.named_parameters())
    places = {name: i for i, name in enumerate(name for group in rest["groups"] for name in group["params"])}
    state = {}
    for key in file.keys():  # noqa: SIM118
        name, _, what = key.rpartition(".")
        state.setdefault(places[name], {})[what] = _place(file.get_tensor(key), params[name])
    for key, number in rest["numbers"].items():
        name, _, what = key.rpartition(".")
        state.setdefault(places[name], {})[what] = number
    groups = [group | {"params": [places[name] for name in group["params"]]} for group in rest["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _gather(accelerator: Accelerator, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The full tensors, on the CPU of the main process only."""
    full = {}
    for name, tensor in tensors.items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if accelerator.is_main_process:
            full[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return full


def _place(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a full tensor; where `like` is sharded and as large, this process's shard of it."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.clone()


def _random_state() -> dict[str, Any]:
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002 (the generator that `set_seed` seeds)
    return {
        "python": random.getstate(),
        "numpy": [numbers.tolist(), *rest],
        "torch": bytes(torch.get_rng_state().numpy()).hex(),
        "cuda": bytes(torch.cuda.get_rng_state().numpy()).hex() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    """Raises a `ValueError` for what is no state of the generators."""
    try:
        _set_generators(state)
    except RuntimeError as error:  # PyTorch's, for a state of another length
        raise ValueError(
            f"The random states of the checkpoint are none ({error}): resume from another one."
        ) from error


def _set_generators(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(("MT19937", *state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch"]), dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.frombuffer(bytearray.fromhex(state["cuda"]), dtype=torch.uint8))


def _start(partial: Path) -> None:
    for debris in partial.parent.glob("checkpoint-*.partial"):
        shutil.rmtree(debris)
    partial.mkdir(parents=True)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged or no safetensors file ({error}): resume from another one.") from error


def _finish(partial: Path, final: Path, *, notes: dict) -> None:
    write_json(partial / STATE, notes, indent=None, sort_keys=True)
    files = {path.name: {"size": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(partial.iterdir())}
    write_json(partial / MANIFEST, {"files": files}, indent=None, sort_keys=True)
    wait_for_disk(partial)
    if final.exists():  # of a run that went on from an earlier step
        _remove(final)
    partial.rename(final)
    wait_for_disk(final.parent)


def _remove_oldest(output_dir: Path, total_limit: int | None, *, kept: set[Path | None]) -> None:
    # Other programs name their folders so too.
    ours = (path for path in _checkpoints(output_dir) if (path / MANIFEST).is_file())
    others = sorted((path for path in ours if path not in kept), key=_step)
    if total_limit is not None:
        for path in others[: max(len(others) + 1 - total_limit, 0)]:
            _remove(path)


def _remove(path: Path) -> None:
    """At once for whoever looks for checkpoints; what a kill leaves of it goes with the next save."""
    shutil.rmtree(path.rename(path.with_name(f"{path.name}.removed.partial")))


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _problems(path: Path, with_hashes: bool = False) -> list[str]:
    """What is missing or damaged in a checkpoint."""
    if not (path / MANIFEST).is_file():
        return [f"{MANIFEST} is missing"]
    try:
        files = {
            path_inside(path, name): (int(facts["size"]), str(facts["sha256"]))
            for name, facts in read_json(path / MANIFEST)["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is damaged"]
    problems = [f"{MANIFEST} does not name {name}" for name in (MODEL, STATE) if path / name not in files]
    for file, (size, sha256) in files.items():
        name = file.name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} of {size} bytes")
        elif with_hashes and hash_file(file) != sha256:
            problems.append(f"{name} is not what was written (SHA-256)")
    return problems


def _read_notes(path: Path, expected: dict) -> dict:
    problems = _problems(path, with_hashes=True)
    if problems:
        raise ValueError(
            f"'{path}' is no complete checkpoint: {'; '.join(problems)}. Resume from another one, for example 'latest'."
        )
    try:
        notes = read_json(path / STATE)
    except ValueError as error:
        raise ValueError(f"'{path / STATE}' is damaged or no JSON file ({error}): resume from another one.") from error
    refuse_other_run(path, notes["state"]["run"], expected=expected)
    return notes


def refuse_other_run(path: Path, saved: dict[str, Any], *, expected: dict[str, Any]) -> None:
    """Raises a `ValueError` that names the fields that differ, with old and new values, if a checkpoint is of another run.

    Args:
        path: of the checkpoint, for the message.
        saved: what the run told of itself when the checkpoint was written.
        expected: what it tells now; "content.…" counts as in [`load_checkpoint`].
    """
    # As JSON gives it back: lists for tuples
    saved, now = _flat(saved), _flat(json.loads(json.dumps(expected)))
    both = saved.keys() & now.keys()
    # What the content is was not written into checkpoints from before, nor is it known of every source; and where it is
    # known, where it lies does not matter. Nor does what diffusers notes in a configuration for itself, as its own version.
    compared = [
        key
        for key in sorted(saved.keys() | now.keys())
        if (key in both or not key.startswith("content."))
        and f"content.{key}" not in both
        and not key.rpartition(".")[2].startswith("_")
    ]
    differences = [
        f"{key}: {saved.get(key, 'nothing')} there, {now.get(key, 'nothing')} now"
        for key in compared
        if saved.get(key) != now.get(key)
    ]
    if differences:
        is_content = any(difference.startswith("content.") for difference in differences)
        hashes = " (content: hashes of what is in the files, so these have changed)" if is_content else ""
        raise ValueError(
            f"'{path}' is of another configuration: {'; '.join(differences)}{hashes}. Resume with the one it was made with, "
            "or start a new run from its weights."
        )


def _flat(fields: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_shapes(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with _open(path) as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    here = {name: list(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        f"{name} {saved.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name) != here.get(name)
    ]
    if wrong:
        shown = wrong if len(wrong) <= 5 else [*wrong[:5], "…"]
        raise ValueError(f"'{path}' is of another model: {'; '.join(shown)}.")
