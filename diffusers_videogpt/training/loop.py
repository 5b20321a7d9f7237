"""The loop that every training script runs: steps, log, validation, checkpoints, resume, and stopping well.

What a step trains on and its noise follow from the seed and the step, so a run that stopped, for whatever reason, goes on
from its last checkpoint as if it had never stopped.
"""

import atexit
import csv
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, reduce
from diffusers import ContextParallelConfig
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm

from ..context_parallel import check_context_parallel
from ..extras import require
from ..files import written_whole
from .checkpoints import RunParts, find_checkpoint, load_checkpoint, load_weights, save_checkpoint
from .feed import LatentFeed, MicroBatch
from .noise_levels import ErrorsByAlpha
from .settings import BatchSettings, LoopSettings, OptimizerSettings
from .throughput import Throughput


EXIT_ON_SIGTERM = 143  # 128 + SIGTERM, as a shell reports it


def make_accelerator(loop: LoopSettings, *, batches: BatchSettings, optimizer: OptimizerSettings) -> Accelerator:
    """The accelerator, with devices and sharding as `accelerate launch` configured them.

    Raises:
        SystemExit: under DeepSpeed, whose checkpoints are pickles, which this project does not load; under accelerate's own
            context, sequence or tensor parallelism; or if the processes can't form groups of `--context_parallel_size`.
    """
    accelerator = Accelerator(
        mixed_precision=loop.mixed_precision,
        gradient_accumulation_steps=batches.gradient_accumulation_steps,
        log_with=loop.report_to,
        project_dir=loop.output_dir,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise SystemExit(
            "DeepSpeed is not supported: use FSDP2, which shards like ZeRO-3 (configs/accelerate/fsdp2.yaml) or like ZeRO-2 "
            "(configs/accelerate/fsdp2_zero2.yaml)."
        )
    if accelerator.distributed_type == DistributedType.FSDP and optimizer.use_8bit_adam:
        raise SystemExit("--use_8bit_adam does not work with FSDP2: bitsandbytes takes no sharded parameters.")
    foreign = accelerator.parallelism_config
    if foreign is not None and foreign.non_data_parallel_size > 1:
        raise SystemExit(
            f"accelerate's configuration asks for its own parallelism (cp_size {foreign.cp_size}, sp_size {foreign.sp_size}, "
            f"tp_size {foreign.tp_size}), which knows neither this model's mask nor its layers: leave these out, and give "
            "--context_parallel_size N."
        )
    size, num_processes = batches.context_parallel_size, accelerator.num_processes
    if num_processes % size:
        raise SystemExit(
            f"--context_parallel_size {size} does not divide the {num_processes} process(es) of this run into groups: launch "
            f"a multiple of {size} (accelerate launch --num_processes), or choose another size."
        )
    hold_process_group()
    return accelerator


def check_heads(transformer: nn.Module, group_size: int) -> None:
    """Raises a `ValueError` if `group_size` processes can't have as many attention heads each: before anything is encoded."""
    if group_size > 1:
        config = ContextParallelConfig(ulysses_degree=group_size)
        check_context_parallel(config, transformer.config.num_attention_heads)


def join_processes(model: nn.Module, group_size: int) -> None:
    """Makes every `group_size` neighbouring processes compute the model's batches together, by Ulysses context parallelism.

    Data parallelism stays over all processes: DDP and FSDP2 take the mean of all gradients, and FSDP2 shards the parameters
    over all, whatever the groups.

    Raises:
        ValueError: if the heads of the model are not divided by `group_size`.
    """
    mesh = init_device_mesh(
        "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator().type,
        (torch.distributed.get_world_size() // group_size, 1, group_size),
        mesh_dim_names=("data", "ring", "ulysses"),
    )
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=group_size, mesh=mesh))


def hold_process_group() -> None:
    """Keeps the group of the processes, if there is one, to the end of the program.

    Without this, DDP may be the last to hold a reference to the group, and destroys it while it holds Python's global lock.
    If gloo's thread waits for that lock at the same moment, the process never ends (seen now and then with torch 2.13).
    """
    if torch.distributed.is_initialized():
        groups = [torch.distributed.group.WORLD]
        atexit.register(groups.clear)


def reshard(model: nn.Module) -> None:
    """Splits the parameters among the processes again: after a forward pass without a backward pass, FSDP2 leaves each process
    with all of them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def make_optimizers(model: nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all trainable parameters, or Muon for the matrices of the blocks and AdamW for the rest."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {}
    if settings.optimizer == "muon":
        matrices = {name: p for name, p in trainable.items() if "transformer_blocks." in name and p.ndim == 2}
    others = [p for name, p in trainable.items() if name not in matrices]
    groups = [
        {"params": [p for p in others if p.ndim >= 2]},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw_args = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "weight_decay": settings.adam_weight_decay,
        "eps": settings.adam_epsilon,
    }
    groups = [group for group in groups if group["params"]]
    if settings.use_8bit_adam:
        bitsandbytes = require("bitsandbytes", "8-bit AdamW needs bitsandbytes", extra="train")
        adamw = bitsandbytes.optim.AdamW8bit(groups, **adamw_args)
    else:
        adamw = torch.optim.AdamW(groups, **adamw_args)
    if not matrices:
        return [adamw]
    # Its updates are scaled to the size of AdamW's, so both share the learning rate and the decay.
    muon = torch.optim.Muon(
        matrices.values(),
        lr=settings.learning_rate,
        weight_decay=settings.adam_weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


class TrainingLoop:
    """Trains `model` on the batches of `feed`.

    Args:
        accelerator: from [`make_accelerator`].
        model: the network; what requires gradients is trained.
        feed: what the steps train on.
        loss: `loss(model, batch)`, a scalar, from a [`~feed.MicroBatch`].
        settings: how long, and what is written when.
        optimizer: of the weights.
        run: what identifies this run, plain values by name: only a checkpoint with the same values is resumed.
        validate: called as `validate(loop, step)` with the averaged weights in place, on all processes, every
            `--validation_steps`; its dictionary of numbers goes into the log and to the tracker.
        batches: micro-batches of a step, and how many processes compute one together.
        trainable_only: checkpoints hold only the trained parameters (adapters).
        options: of the run, plain values by name, which a tracker shows.
        errors: filled by `loss` as it runs: the errors by noise level, for the log.
        patience: validations without a lower loss of the held-out videos after which the run ends, with the weights that had
            the lowest in place; 0 for none: the run goes to its last step, and keeps what it has there.

    Attributes:
        best: "step" and "loss" of the lowest validation loss, where there is patience.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        *,
        feed: LatentFeed,
        loss: Callable[[nn.Module, MicroBatch], torch.Tensor],
        settings: LoopSettings,
        optimizer: OptimizerSettings,
        run: dict,
        validate: Callable[["TrainingLoop", int], dict[str, float]],
        batches: BatchSettings,
        trainable_only: bool = False,
        options: dict | None = None,
        errors: ErrorsByAlpha | None = None,
        patience: int = 0,
    ):
        self.accelerator, self.feed, self.loss = accelerator, feed, loss
        self.settings, self.max_grad_norm, self.options = settings, optimizer.max_grad_norm, options or {}
        self.gradient_accumulation_steps = batches.gradient_accumulation_steps
        self.group_size = batches.context_parallel_size
        self.run_fields, self.validate, self.trainable_only = run, validate, trainable_only
        if self.group_size > 1:
            join_processes(model, self.group_size)
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if settings.torch_compile:
            model.compile_repeated_blocks()
            accelerator.print("--torch_compile: the first step compiles the blocks, which takes minutes")
        optimizers = make_optimizers(model, optimizer)
        self.model, *self.optimizers = accelerator.prepare(model.train(), *optimizers)
        # Not prepared: one step of the schedule is one step of training, however many processes there are.
        self.schedulers = [
            get_scheduler(
                optimizer.lr_scheduler,
                getattr(prepared, "optimizer", prepared),
                num_warmup_steps=optimizer.lr_warmup_steps,
                num_training_steps=settings.max_train_steps,
            )
            for prepared in self.optimizers
        ]
        self.ema = None
        if optimizer.ema_decay:
            self.ema = EMAModel(self.trained_parameters(), decay=optimizer.ema_decay)
            self.ema.to(accelerator.device)
        self.log_path = settings.output_dir / "train_log.csv"
        self.log, self.losses, self.step = [], [], 0
        self.errors = errors or ErrorsByAlpha()
        self.error_sums = self.errors.take()  # since the last row of the log, over all processes
        self.patience, self.best, self.num_since_best = patience, None, 0
        self.first_step = 0  # later than 0 in a run that was resumed
        # A signal may reach one process only (`_stop_asked`). All processes stop at the same step (`_stopping`, the same in
        # all): if one stopped alone, the others would wait for it for ever.
        self._stop_asked = self._stopping = False

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def run(self) -> None:
        """Trains from the last checkpoint, if asked to, up to `--max_train_steps`.

        Raises:
            SystemExit: the loss is not finite (the message has the step and the videos); the folder holds checkpoints of another
                run; or SIGTERM asked to stop: then with code 143, after a checkpoint was written.
        """
        settings, accelerator = self.settings, self.accelerator
        self._resume()
        if accelerator.is_main_process and settings.report_to:
            plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in self.options.items()}
            accelerator.init_trackers(settings.tracker_project_name, config=plain)
        previous = signal.signal(signal.SIGTERM, self._ask_to_stop)
        progress = tqdm(
            total=settings.max_train_steps, initial=self.step, disable=not accelerator.is_main_process, mininterval=5
        )
        throughput = Throughput(accelerator, accelerator.unwrap_model(self.model), group_size=self.group_size)
        batches = iter(self.feed.micro_batches(self.step, settings.max_train_steps))
        while self.step < settings.max_train_steps and not self.has_converged:
            self._train_step(batches, throughput)
            progress.update()
            is_last = self.step == settings.max_train_steps
            validates = self.step % settings.validation_steps == 0 or is_last
            if self.step % settings.logging_steps == 0 or validates:
                self._log(throughput, progress, validation=self._validation() if validates else {})
            is_best = self.best is not None and self.best["step"] == self.step
            if self.step % settings.checkpointing_steps == 0 or is_best or (self._stopping and not is_last):
                self._checkpoint()
            if self._stopping and not is_last:
                accelerator.print(f"stopped at step {self.step}: resume with --resume_from_checkpoint latest")
                accelerator.end_training()
                sys.exit(EXIT_ON_SIGTERM)
        progress.close()
        signal.signal(signal.SIGTERM, previous)
        if self.best is not None and self.best["step"] != self.step:
            accelerator.print(
                f"ended at step {self.step}: the loss of held-out videos was lowest at step {self.best['step']}, whose weights "
                "are kept"
            )
            load_weights(settings.output_dir / f"checkpoint-{self.best['step']}", self._parts())

    @property
    def has_converged(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.num_since_best

    def _ask_to_stop(self, *_):
        self._stop_asked = True

    def _train_step(self, batches, throughput: Throughput) -> None:
        accelerator, step_losses, names = self.accelerator, [], []
        for _ in range(self.gradient_accumulation_steps):
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
                    accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
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
        numbers = reduce(torch.cat([numbers, self.errors.take(loss.device)]), reduction="sum").cpu()
        mean_loss, num_bad, asked = numbers[:3].tolist()
        self.error_sums += numbers[3:] / self.group_size  # each process of a group has counted the same frames
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

    def _log(self, throughput: Throughput, progress: tqdm, *, validation: dict[str, float]) -> None:
        row = {
            "step": self.step,
            "loss": repr(math.fsum(self.losses) / len(self.losses)),
            "learning_rate": repr(self.schedulers[0].get_last_lr()[0]),
            "validation_loss": repr(validation["loss"]) if "loss" in validation else "",
        }
        by_alpha = self.errors.describe(self.error_sums)
        row |= {name: f"{value:.4g}" for name, value in by_alpha.items()}
        row |= {f"validation_{name}": f"{value:.4g}" for name, value in validation.items() if "_at_" in name}
        self.losses, self.error_sums = [], self.errors.take()
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
        numbers |= {f"train/{name}": value for name, value in by_alpha.items()}
        numbers |= {f"speed/{name}": value for name, value in timing.items()}
        numbers |= {f"validation/{name}": value for name, value in validation.items()}
        self.accelerator.log(numbers, step=self.step)
        progress.set_postfix(loss=f"{numbers['train/loss']:.4f}", lr=f"{numbers['train/learning_rate']:.1e}", **timing)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The average in the place of the trained weights, if there is one, and no gradients; the weights come back at the end.

        Both lie in memory anyway, so they change places, one tensor after the other."""

        def change_places():
            # What FSDP2 has gathered, and what autocast has cast, is of the weights as they were.
            reshard(self.model)
            torch.clear_autocast_cache()
            if self.ema is not None:
                for weight, average in zip(self.trained_parameters(), self.ema.shadow_params, strict=True):
                    kept = weight.detach().clone()
                    weight.copy_(average)
                    average.copy_(kept)

        with torch.no_grad():
            change_places()
            try:
                yield
            finally:
                change_places()

    def _validation(self) -> dict[str, float]:
        """The script's validation, with the averaged weights in place and no gradient."""
        self.model.eval()
        with self.averaged_weights():
            numbers = self.validate(self, self.step)
        self.model.train()
        if self.patience and "loss" in numbers:
            self._note_best(numbers["loss"])
        return numbers

    def _note_best(self, loss: float) -> None:
        # All processes go by one number: where they end differs otherwise, and they wait for each other for ever.
        loss = broadcast_object_list([loss])[0]
        if self.best is None or loss < self.best["loss"]:
            self.best, self.num_since_best = {"step": self.step, "loss": loss}, 0
        else:
            self.num_since_best += 1

    def _state(self) -> dict:
        best = {"best": self.best, "num_since_best": self.num_since_best} if self.patience else {}
        return best | {
            "step": self.step,
            "losses": self.losses,
            "error_sums": self.error_sums.tolist(),
            "run": self.run_fields,
            "feed": self.feed.source.state_dict(),
        }

    def _parts(self) -> RunParts:
        return RunParts(self.accelerator, self.model, self.optimizers, self.schedulers, self.ema, self.trainable_only)

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.settings.output_dir,
            self.step,
            parts=self._parts(),
            state=self._state(),
            total_limit=self.settings.checkpoints_total_limit,
            best_step=None if self.best is None else self.best["step"],
        )

    def _resume(self) -> None:
        path = find_checkpoint(self.settings.output_dir, self.settings.resume_from_checkpoint)
        if path is None:
            if self.settings.resume_from_checkpoint is not None:
                self.accelerator.print(f"no complete checkpoint in {self.settings.output_dir}: starting at step 0")
            return
        state = load_checkpoint(path, self._parts(), expected=self.run_fields)
        self.step, self.losses = state["step"], state["losses"]
        if "error_sums" in state:  # not in checkpoints from before
            self.error_sums = torch.tensor(state["error_sums"], dtype=torch.float64)
        if self.patience and state.get("best") is not None:
            self.best, self.num_since_best = state["best"], state["num_since_best"]
            best = self.settings.output_dir / f"checkpoint-{self.best['step']}"
            if not best.is_dir():
                raise SystemExit(
                    f"{best}, which had the lowest loss of held-out videos so far, is not there: bring it back."
                )
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
