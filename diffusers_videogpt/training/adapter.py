"""Training a LoRA adapter on a frozen pipeline: the base, the new adapter, and what is kept of a run."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import BitsAndBytesConfig
from peft import LoraConfig, prepare_model_for_kbit_training
from peft.utils import get_peft_model_state_dict
from torch import nn

from ..files import write_json
from ..pipeline_videogpt import VideoGPTPipeline
from ..transformer_videogpt import VideoGPTTransformerModel
from .adapter_report import AdapterReport, held_out_errors, write_comparison
from .feed import LatentFeed, make_feed
from .loading import load_vae, settle_from_base, widen_window
from .loop import TrainingLoop, check_heads
from .objective import make_clip_drawer, parse_clips
from .recipe import NextClipTraining, start_processes
from .settings import (
    AdapterSettings,
    BaseModelSettings,
    NextClipSettings,
    ObjectiveSettings,
    RolloutSettings,
    SamplingSettings,
    hub_id,
)
from .validation import predict_continuation


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MLP = ["ff.linear_in", "ff.linear_out"]
PATCHES = ["noisy_patch_embed", "clean_patch_embed"]


def start_from_base(
    settings: NextClipSettings, clips: str = "first:1"
) -> tuple[Accelerator, VideoGPTPipeline, LatentFeed]:
    """What a run on a frozen base begins with: its processes, the pipeline, and the feed of its samples.

    Args:
        settings: of the run; `settings.model` is a [`~settings.BaseModelSettings`].
        clips: as of [`load_base`].
    """
    accelerator = start_processes(settings.run, seed=settings.sampling.seed)
    pipe = load_base(
        settings.model,
        settings.objective,
        sampling=settings.sampling,
        rollouts=settings.validation,
        accelerator=accelerator,
        clips=clips,
    )
    check_heads(pipe.transformer, settings.batches.context_parallel_size)
    feed = make_feed(accelerator, pipe.vae, draw_clips=make_clip_drawer(settings.objective), data=settings.data)
    return accelerator, pipe, feed


def load_base(
    model: BaseModelSettings,
    objective: ObjectiveSettings,
    *,
    sampling: SamplingSettings,
    rollouts: RolloutSettings,
    accelerator: Accelerator,
    clips: str,
) -> VideoGPTPipeline:
    """The pipeline with frozen weights, quantized if asked to; it predicts clips as they are trained.

    Args:
        clips: their form where neither the options nor the pipeline tell one.

    Raises:
        SystemExit: weights in bfloat16, and training that is not.
    """
    if model.base_dtype == "bfloat16" and accelerator.mixed_precision != "bf16":
        raise SystemExit(
            "--base_dtype bfloat16 needs --mixed_precision bf16: the adapter itself is trained in float32."
        )
    settle_from_base(sampling, model, objective=objective, clips=clips, rollouts=rollouts)
    dtype = getattr(torch, model.base_dtype)
    config = None
    if model.quantize_base == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    elif model.quantize_base == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    vae = load_vae(model)
    where = {"revision": model.revision, "variant": model.variant}
    transformer = VideoGPTTransformerModel.from_pretrained(
        model.pretrained_model_name_or_path,
        subfolder="transformer",
        dtype=dtype,
        quantization_config=config,
        **where,
    )
    pipe = VideoGPTPipeline.from_pretrained(
        model.pretrained_model_name_or_path, transformer=transformer, vae=vae, **where
    )
    transformer.requires_grad_(False)
    if model.quantize_base is not None:
        prepare_model_for_kbit_training(transformer, use_gradient_checkpointing=False)
    pipe.register_to_config(frames_per_clip=predicted_clip(model, objective, sampling=sampling, pipe=pipe))
    widen_window(pipe, sampling.num_frames)
    pipe.set_progress_bar_config(disable=True)
    if model.vae_group_offload:
        pipe.vae.enable_group_offload(accelerator.device, offload_type="leaf_level")
    else:
        pipe.vae.to(accelerator.device)
    return pipe


def predicted_clip(
    model: BaseModelSettings, objective: ObjectiveSettings, *, sampling: SamplingSettings, pipe: VideoGPTPipeline
) -> int:
    """Frames that are predicted at once: as many as a clip has in training."""
    if model.frames_per_clip is not None:
        return model.frames_per_clip
    if objective.clips == "random":
        return pipe.config.frames_per_clip
    lengths = parse_clips(objective.clips)(sampling.num_frames, None)
    return lengths[-1] if objective.clips.startswith("first") else lengths[0]


def add_adapter(transformer: VideoGPTTransformerModel, adapter: AdapterSettings, *, seed: int) -> LoraConfig:
    """A new adapter, in fp32, which begins as no change; returns its configuration."""
    targets = list(ATTENTION)
    if adapter.train_mlp:
        targets += MLP
    if adapter.train_patch_embeddings:
        targets += PATCHES
    torch.manual_seed(seed)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.rank if adapter.lora_alpha is None else adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=targets,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
    )
    transformer.add_adapter(config)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return config


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """The model as it is without its adapters. What is trained stays marked as such, which `disable_adapters` undoes."""
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def mark():
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)

    model.disable_adapters()
    mark()
    try:
        yield
    finally:
        model.enable_adapters()
        mark()


class AdapterTraining(NextClipTraining):
    """Training of an adapter that the pipeline's transformer has; it alone is kept in checkpoints and saved.

    Args:
        base: the path or id of the pipeline. A checkpoint must agree with its weights, not with where they lie.
        base_hash: of the frozen transformer's weights.
        config: of the adapter, from [`add_adapter`].
        patience: of [`~loop.TrainingLoop`].
    """

    trainable_only = True
    is_adapter = True

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        base: str,
        base_hash: str,
        config: LoraConfig,
        patience: int = 0,
        **training,
    ):
        super().__init__(accelerator, pipe, **training)
        self.base, self.config = base, config
        self.base_hash, self.patience = base_hash, patience
        self.comparison: Path | None = None

    def model_fields(self) -> dict[str, Any]:
        adapter = {name: getattr(self.config, name) for name in ("r", "lora_alpha", "use_dora", "use_rslora")}
        adapter |= {"target_modules": sorted(self.config.target_modules)}
        return {"base": self.base, "adapter": adapter, "content.base": self.base_hash}

    def trained_with(self) -> dict[str, Any]:
        sampling = self.feed.sampling
        size = {"longest_side": sampling.longest_pixels}
        if sampling.height is not None:
            size = {"height": sampling.height, "width": sampling.width}
        return super().trained_with() | size | {"frames_per_clip": self.pipe.config.frames_per_clip}

    @torch.no_grad()
    def report(self, loop: TrainingLoop) -> None:
        """Compares base and adapter on the held-out videos: their loss, and predictions of some of them."""
        # Compiling passes for a few predictions would take longer than they do, and all processes compute a sharded model.
        network = self.accelerator.unwrap_model(loop.model, keep_torch_compile=False)
        network.eval()
        self.pipe.transformer = network
        losses, predictions = {}, {}
        samples = self.feed.validation_samples(self.rollouts.num_validation_rollouts)
        videos = [sample["frames"] for sample in samples]
        num_given = self.rollouts.validation_given_frames
        with torch.compiler.set_stance("force_eager"):
            for name, network_as in (("base", base_alone(network)), ("LoRA", nullcontext())):
                with network_as, self.accelerator.autocast():
                    losses[name], _ = self.held_out_losses(network)
                    predictions[name] = [
                        predict_continuation(
                            self.pipe,
                            sample["frames"],
                            num_given=num_given,
                            actions=sample.get("actions"),
                            num_inference_steps=self.rollouts.validation_inference_steps,
                            generator=torch.Generator().manual_seed(self.feed.sampling.seed + index),
                        )
                        for index, sample in enumerate(samples)
                    ]
        if not self.accelerator.is_main_process:
            return
        found = AdapterReport(
            rank=self.config.r,
            trained_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
            num_videos=self.feed.num_videos,
            learning_rate=loop.schedulers[0].base_lrs[0],
            last_step=loop.step,
            kept_step=loop.step if loop.best is None else loop.best["step"],
            loss={name: sum(values) / len(values) for name, values in losses.items() if values},
            num_predicted=len(videos),
            error=held_out_errors(videos, predictions, num_given=num_given),
        )
        write_json(self.folder / "report.json", asdict(found), indent=2)
        print(found.text)
        if videos:
            self.comparison = write_comparison(
                self.folder / "held_out.png", videos, predictions=predictions, num_given=num_given, fps=self.feed.fps
            )
            print(f"held-out first frames, still, base, LoRA and truth: {self.comparison}")

    def card(self, loop: TrainingLoop) -> dict[str, Any]:
        card = super().card(loop)
        return card if self.comparison is None else card | {"strip": self.comparison}

    def header(self) -> dict[str, str]:
        """What the head of the adapter's file says of it, by the names that tools for LoRA files show: kohya's and
        modelspec's. A base that is a folder goes by its name: where it lies is of this machine alone. The hash of a quantized base
        would be that of no model that the adapter is loaded into."""
        is_quantized = "quantization_config" in self.pipe.transformer.config
        known_hash = {} if is_quantized else {"ss_new_sd_model_hash": self.base_hash}
        return known_hash | {
            "modelspec.architecture": "video-gpt/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": self.settings.output_dir.resolve().name,
            "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
            "modelspec.usage_hint": "one picture is given" if self.trained_on is None else self.trained_on,
            "ss_base_model_version": hub_id(self.base) or Path(self.base).resolve().name,
            "ss_network_dim": str(self.config.r),
            "ss_network_alpha": str(self.config.lora_alpha),
            "ss_dataset_name": hub_id(self.dataset) or Path(self.dataset or "").name,
        }

    def save(self, loop: TrainingLoop, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        transformer = self.accelerator.unwrap_model(loop.model)
        layers = get_peft_model_state_dict(transformer, state_dict=weights, adapter_name="default")
        metadata = self.config.to_dict()
        VideoGPTPipeline.save_lora_weights(
            self.settings.output_dir,
            layers,
            transformer_lora_adapter_metadata=metadata,
            trained_with=self.trained_with() | {"trained_on": self.trained_on},
            header=self.header(),
        )
        return self.card(loop)
