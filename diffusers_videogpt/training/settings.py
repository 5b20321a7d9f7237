"""What a training run can be told, as small dataclasses, one a subject. A script composes those that act in it.

The option of a field has its name: `--max_train_steps 10` is `LoopSettings(max_train_steps=10)`. What does not go together is
refused when the dataclass is made. Nothing heavy is imported here, so that a script's `--help` answers at once.
"""

import re
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..arguments import finite_float, natural_float, natural_int, positive_float, positive_int, set_seed_int
from ..config_values import MAX_FPS, MAX_GAP, split_clips
from .arguments import ema_decay, grad_norm, moment_decay, option, part, share


# Of diffusers' schedules, those that need nothing but the numbers of steps.
Schedule = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
SCHEDULES = typing.get_args(Schedule)
# What simulated scenes show, for who gives other videos to a model that was trained on them.
SIMULATED = {"physics": "simulated balls, boxes and pendulums", "orders": "simulated balls and boxes, made to order"}
LONGEST_SIDE = 320  # of a new model's samples, in pixels
NUM_FRAMES = 48  # of a sample, where no pipeline to start from tells
Dtype = Literal["float32", "bfloat16", "float16"]
# Options of [`ObjectiveSettings`] for who has no past that a model could have predicted from the clips alone.
NO_RESAMPLING = dict.fromkeys(
    ("resampled_history", "resampled_steps"),
    "the past is predicted from clips alone, without a class, a text or a marked first frame: leave it out",
)


def hub_id(name: str | None) -> str | None:
    """`name` if it is an id on the Hub, else `None`: a link to a folder of this machine would lead nowhere."""
    is_id = name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if is_id else None


# The model


@dataclass(kw_only=True)
class ActionSettings:
    """What leads from frame to frame, for a model that can be steered."""

    num_actions: int | None = option(None, "of discrete actions, 0 to this less 1", type=positive_int)
    action_dim: int | None = option(None, "numbers of a continuous action, instead", type=positive_int)
    action_column: str | None = option(
        None,
        "of the table or dataset: a list of actions a video, or a path; default: a file beside each video, of LeRobot 'action'",
    )
    action_dropout: float = option(
        0.1, "share of the clips whose actions are left out, which guidance by actions needs", type=share
    )

    def __post_init__(self):
        if self.num_actions is not None and self.action_dim is not None:
            raise ValueError(
                "--num_actions is for discrete actions, --action_dim for continuous ones: give one of them"
            )
        if not self.are_given:
            for name in ("action_column", "action_dropout"):
                if getattr(self, name) != getattr(ActionSettings, name):
                    raise ValueError(f"--{name} has an effect only with --num_actions or --action_dim")

    @property
    def are_given(self) -> bool:
        """Whether the model is trained on actions."""
        return self.num_actions is not None or self.action_dim is not None

    def check_videos(self, videos: "VideoSettings") -> None:
        """
        Raises:
            ValueError: these videos come without actions.
        """
        if self.are_given and videos.streaming:
            raise ValueError("--streaming reads no actions: leave it out, or --num_actions and --action_dim")
        tables = (videos.dataset_file, videos.dataset_name, videos.lerobot_root)
        if self.action_column is not None and all(table is None for table in tables):
            raise ValueError(
                "--action_column is of --dataset_file, --dataset_name or --lerobot_root: give one of them"
            )


@dataclass(kw_only=True)
class AutoencoderSettings:
    """The autoencoder that makes latents of frames: a pipeline's, or one by itself."""

    pretrained_model_name_or_path: str | None = option(
        None, "a Video-GPT pipeline to start from: a folder or a Hub id"
    )
    revision: str | None = option(None, "of the pipeline on the Hub")
    variant: str | None = option(None, "of the pipeline's weights, for example bf16")
    pretrained_vae_path: str | None = option(None, "a VAE, where there is no pipeline to start from")
    vae_dtype: Dtype = option("float32")

    def __post_init__(self):
        if self.pretrained_model_name_or_path is None and self.pretrained_vae_path is None:
            raise ValueError("give --pretrained_model_name_or_path or --pretrained_vae_path")


@dataclass(kw_only=True)
class ModelSettings(AutoencoderSettings):
    """The pipeline to train, or a new one around an autoencoder."""

    transformer_config: Path | None = option(
        None, "JSON arguments of a transformer to train from nothing", reads="file"
    )
    pretrained_phi3_path: str | None = option(None, "a Phi-3 checkpoint whose decoder a new transformer starts from")
    frames_per_clip: int | None = option(
        None,
        "at inference: kept in the saved pipeline; default: the model's own, of a new one 8",
        type=positive_int,
    )
    guidance_scale: float | None = option(
        None, "at inference: kept in the saved pipeline; default: the model's own, of a new one 3", type=finite_float
    )

    def __post_init__(self):
        if self.pretrained_model_name_or_path is None and self.pretrained_vae_path is None:
            raise ValueError(
                "give --pretrained_model_name_or_path, or --pretrained_vae_path with --transformer_config"
            )
        if self.pretrained_model_name_or_path is not None and (self.transformer_config or self.pretrained_phi3_path):
            raise ValueError(
                "--pretrained_model_name_or_path brings its transformer: leave out --transformer_config and Phi-3"
            )


@dataclass(kw_only=True)
class BaseModelSettings(AutoencoderSettings):
    """The pipeline that an adapter is trained for; its weights are frozen."""

    pretrained_model_name_or_path: str = option(help="the pipeline to adapt")
    pretrained_vae_path: str | None = option(None, "another VAE than the pipeline's")
    base_dtype: Literal["float32", "bfloat16"] = option("float32", "of frozen weights")
    quantize_base: Literal["nf4", "int8"] | None = option(None, "frozen weights by bitsandbytes (QLoRA)")
    vae_group_offload: bool = option(False, "keep the VAE on the CPU between its uses")
    frames_per_clip: int | None = option(
        None, "of predictions; default: as trained, of random clips the pipeline's", type=positive_int
    )


def require_base_on_hub(hub: "HubSettings", base: str) -> None:
    """
    Raises:
        ValueError: a LoRA is to be published, and what it adapts is not on the Hub.
    """
    if hub.push_to_hub and hub_id(base) is None:
        raise ValueError(
            f"--push_to_hub: the page of a LoRA names its base on the Hub, and '{base}' is not there. Train without it, "
            "then `videogpt export-hub … --base-model ID --push`"
        )


@dataclass(kw_only=True)
class AdapterSettings:
    """A LoRA adapter and what it adapts beside the attention."""

    rank: int = option(16, type=positive_int)
    lora_alpha: float | None = option(None, "default: the rank", type=positive_float)
    lora_dropout: float = option(0.0, type=share)
    train_mlp: bool = option(False, "adapt the MLPs too")
    train_patch_embeddings: bool = option(False, "adapt the patch embeddings too")
    use_dora: bool = option(False)
    use_rslora: bool = option(False)


# The data


@dataclass(kw_only=True)
class VideoSettings:
    """Where the videos come from."""

    instance_data_root: Path | None = option(
        None, "folder of videos, or the folder that a table's paths start from", reads="folder"
    )
    dataset_file: Path | None = option(
        None, "CSV or JSONL table with a column of paths; or UCF-101's trainlist01.txt", reads="file"
    )
    dataset_name: str | None = option(None, "Hub dataset, or a local folder that `datasets` loads (also WebDataset)")
    lerobot_root: Path | None = option(None, "folder of a LeRobot dataset, formats v2 and v3", reads="folder")
    lerobot_camera: str | None = option(
        None, "of --lerobot_root: the feature whose videos are taken, if there are several"
    )
    dataset_config_name: str | None = option(None)
    dataset_split: str = option("train")
    video_column: str = option("video")
    caption_column: str | None = option(None, "what the videos show, in words; kept in a cache of latents")
    label_column: str | None = option(None, "their classes; of a folder and a .txt list they are the folders' names")
    streaming: bool = option(False, "read --dataset_name as a stream, without a download")
    num_simulated_scenes: int | None = option(None, "train on simulated physics instead of videos", type=positive_int)
    simulated_world: Literal["physics", "orders"] = option(
        "physics", "scenes of five kinds, or of balls and boxes made to order, for text to video"
    )
    frames_per_scene: int | None = option(
        None, "of a simulated scene, of which a sample is a window; default: max_num_frames", type=positive_int
    )
    max_bad_fraction: float = option(0.5, "a larger share of unusable videos stops the run", type=share)
    trained_on: str | None = option(
        None, "what the videos show, in a few words: kept in what is saved, and on its card; of simulated scenes known"
    )

    def __post_init__(self):
        sources = (self.dataset_file, self.dataset_name, self.num_simulated_scenes, self.lerobot_root)
        if sum(x is not None for x in sources) > 1:
            raise ValueError(
                "give only one of --dataset_file, --dataset_name, --num_simulated_scenes and --lerobot_root"
            )
        if self.lerobot_camera is not None and self.lerobot_root is None:
            raise ValueError("--lerobot_camera needs --lerobot_root")
        for other in ("num_simulated_scenes", "dataset_name", "lerobot_root"):
            if self.instance_data_root is not None and getattr(self, other) is not None:
                raise ValueError(f"--instance_data_root and --{other} both say where the videos come from: give one")
        if self.streaming and self.dataset_name is None:
            raise ValueError("--streaming needs --dataset_name")

    @property
    def has_source(self) -> bool:
        sources = (self.instance_data_root, self.dataset_file, self.dataset_name, self.num_simulated_scenes)
        return any(x is not None for x in (*sources, self.lerobot_root))

    def require_source(self) -> None:
        """
        Raises:
            ValueError: nothing says where videos come from.
        """
        if not self.has_source:
            raise ValueError(
                "give videos: --instance_data_root, --dataset_file, --dataset_name, --lerobot_root or --num_simulated_scenes"
            )

    @property
    def columns(self) -> dict[str, str | None]:
        """Which columns of a table or a dataset are read, as their readers take them."""
        return {name: getattr(self, name) for name in ("video_column", "caption_column", "label_column")}

    @property
    def description(self) -> str | None:
        """What the videos show, in a few words, where that is known."""
        if self.trained_on is not None or self.num_simulated_scenes is None:
            return self.trained_on
        return SIMULATED[self.simulated_world]

    @property
    def name(self) -> str | None:
        """Of the data, for a card."""
        folder = self.instance_data_root or self.lerobot_root
        return self.dataset_name or (str(folder) if folder else None)


@dataclass(kw_only=True)
class SamplingSettings:
    """Which frames a sample takes, at which size, and the seed of all that is drawn."""

    max_num_frames: int | None = option(
        None,
        "frames of one training sample; default: those of the pipeline to start from, where it tells, else 48",
        type=positive_int,
    )
    min_num_frames: int | None = option(
        None,
        "shorter videos are used down to this; default: half of max_num_frames where that is the pipeline's, else not at all",
        type=positive_int,
    )
    frame_interval: tuple[int, ...] | None = option(
        None,
        "source frames a step: N, or MIN MAX; default: the frame rate of the pipeline to start from, where it tells one, else 1",
        metavar="N",
    )
    target_fps: float | None = option(
        None, "frames a second of a sample, instead of --frame_interval", type=positive_float
    )
    longest_side: int | None = option(
        None,
        "size in pixels; the aspect ratio is kept; default: that of the pipeline to start from, of a new one 320",
        type=positive_int,
    )
    height: int | None = option(
        None, "with --width: a fixed size, multiples of 16, instead of --longest_side", type=positive_int
    )
    width: int | None = option(None, type=positive_int)
    seed: int = option(0, "of windows, clips, noise and new weights", type=set_seed_int)

    def __post_init__(self):
        if (self.height is None) != (self.width is None):
            raise ValueError("give --height and --width together, or --longest_side")
        if self.height is not None and (self.height % 16 or self.width % 16):
            raise ValueError(f"--height {self.height} --width {self.width}: both must be multiples of 16")
        interval = self.frame_interval or (1,)
        if len(interval) > 2 or min(interval) < 1 or tuple(sorted(interval)) != interval:
            raise ValueError(f"--frame_interval takes one number or a range MIN MAX, got {list(interval)}")
        if self.target_fps is not None and not 1 / MAX_GAP <= self.target_fps <= MAX_FPS:
            raise ValueError(
                f"--target_fps {self.target_fps:g} must be at most {MAX_FPS:g}, and at least one frame in {MAX_GAP:g} s"
            )
        if self.longest_side is not None and self.longest_side < 16:
            raise ValueError(f"--longest_side {self.longest_side} is too small: frames are cut to multiples of 16")
        if None not in (self.min_num_frames, self.max_num_frames) and self.min_num_frames > self.max_num_frames:
            raise ValueError(f"--min_num_frames {self.min_num_frames} is above --max_num_frames {self.max_num_frames}")
        if self.target_fps is not None and self.frame_interval is not None:
            raise ValueError("--target_fps and --frame_interval both set the rate: give one")

    @property
    def num_frames(self) -> int:
        """Frames of the longest sample."""
        return NUM_FRAMES if self.max_num_frames is None else self.max_num_frames

    @property
    def least_num_frames(self) -> int:
        """Frames of the shortest sample."""
        return self.min_num_frames or self.num_frames

    @property
    def longest_pixels(self) -> int:
        """The longer side of the samples, in pixels."""
        if self.height is not None:
            return max(self.height, self.width)
        return LONGEST_SIDE if self.longest_side is None else self.longest_side


@dataclass(kw_only=True)
class LatentSettings:
    """How videos become latents, and which are kept for validation."""

    cached_latents: Path | None = option(None, "folder that cache_latents.py wrote, instead of videos", reads="folder")
    windows_per_video: int | None = option(
        None,
        "encode so many samples of each video into output_dir/latents before the first step, and train on these",
        type=positive_int,
    )
    same_clips_in_step: bool = option(
        False, "cut all samples of a step alike: nothing is padded where clips are few and long"
    )
    vae_batch_size: int = option(16, "frames encoded at once", type=positive_int)
    posterior: Literal["sample", "mean"] = option(
        "sample", "of the autoencoder, which training sees: drawn anew at every step as in the paper, or its mean"
    )
    num_validation_videos: int | None = option(
        None,
        "videos kept from training for validation; default: 8, and of fewer than 40 videos a fifth",
        type=natural_int,
    )
    validation_data_root: Path | None = option(None, "folder of other videos for validation, instead", reads="folder")

    def check_videos(self, videos: VideoSettings) -> None:
        """
        Raises:
            ValueError: there are neither videos nor cached latents, or both; or a stream is to be encoded before.
        """
        if self.cached_latents is None:
            videos.require_source()
        # Not --dataset_file: beside UCF-101's lists are the numbers of the classes.
        sources = ("instance_data_root", "dataset_name", "num_simulated_scenes", "lerobot_root")
        given = {name: getattr(videos, name) for name in sources}
        given |= {"streaming": videos.streaming, "windows_per_video": self.windows_per_video}
        for other, value in given.items():
            if self.cached_latents is not None and value:
                raise ValueError(f"--cached_latents are trained on instead of videos: leave out --{other}")
        if videos.streaming and self.windows_per_video is not None:
            raise ValueError(
                "--windows_per_video encodes before the first step, a stream has no end: leave out one of them"
            )

    def num_held_out(self, num_videos: int) -> int:
        """Videos kept from training for validation: as asked for, or of a small set a fifth."""
        if self.validation_data_root is not None:
            return 0
        return min(8, num_videos // 5) if self.num_validation_videos is None else self.num_validation_videos


# The training


@dataclass(kw_only=True)
class ObjectiveSettings:
    """The loss of next clip diffusion.

    The noise levels are named as diffusers' flow-matching examples name them. There, u runs from noise to clean latents,
    which is α here, the share of signal: a `logit_mean` above 0 trains on less noise.
    """

    clips: str | None = option(
        None,
        "of a sample: random, equal:N (frames each), or first:N (given, then the rest); default: as the pipeline to start from "
        "was trained, where it tells; else random, and for an adapter first:1",
    )
    max_clips: int | None = option(
        None, "with random: most clips of a sample; default: one a frame", type=positive_int
    )
    next_frame_share: float = option(
        0.0, "with random: share of the samples that are cut into clips of one frame instead", type=share
    )
    min_retention: float = option(0.9, "least share of signal in a clean clip", type=share)
    weighting_scheme: Literal["none", "logit_normal", "mode"] = option(
        "none", "which noise levels α are drawn: none for uniform ones, as the paper; 1 is clean"
    )
    logit_mean: float = option(0.0, "of logit_normal: above 0 for less noise", type=finite_float)
    logit_std: float = option(1.0, "of logit_normal", type=positive_float)
    mode_scale: float = option(1.29, "of mode: above 0 for more levels in the middle", type=finite_float)
    uniform_share: float = option(
        0.0, "share of the clips whose level is uniform whatever the scheme: a mixture", type=share
    )
    loss_weighting: Literal["none", "velocity"] = option(
        "none", "of a frame's error: none as the paper, or 1/(1-α)², which makes it that of the velocity"
    )
    max_loss_weight: float = option(25.0, "where --loss_weighting velocity is capped", type=positive_float)
    resampled_history: float = option(
        0.0,
        "share of the samples whose past is as the model itself predicts it, clip after clip, not as it was",
        type=share,
    )
    resampled_steps: Literal[1, 2] = option(1, "of --resampled_history: denoising steps a clip", type=int)

    def __post_init__(self):
        try:
            split_clips(self.clips or "random", self.max_clips)
        except ValueError as error:
            raise ValueError(f"--clips: {error}") from None
        if self.clips in (None, "random") and self.max_clips == 1:
            raise ValueError(
                "--max_clips 1: random clips are 2 at least; one clip a sample is --clips equal:N of all N frames"
            )
        if self.next_frame_share and self.clips not in (None, "random"):
            raise ValueError(f"--next_frame_share has an effect only with --clips random, not with {self.clips}")
        if not self.logit_std > 0:
            raise ValueError(f"--logit_std {self.logit_std}: a spread is above 0")
        if not -1 <= self.mode_scale <= 1.75:
            raise ValueError(f"--mode_scale {self.mode_scale} must lie in -1..1.75: beyond, levels leave [0, 1]")
        # What the scheme does not read would be missed.
        of_schemes = {"logit_mean": "logit_normal", "logit_std": "logit_normal", "mode_scale": "mode"}
        for name, scheme in of_schemes.items():
            if getattr(self, name) != getattr(ObjectiveSettings, name) and self.weighting_scheme != scheme:
                raise ValueError(f"--{name} has an effect only with --weighting_scheme {scheme}")
        if self.uniform_share and self.weighting_scheme == "none":
            raise ValueError("--uniform_share has an effect only with another --weighting_scheme than none")
        if self.resampled_steps != ObjectiveSettings.resampled_steps and not self.resampled_history:
            raise ValueError("--resampled_steps has an effect only with --resampled_history above 0")
        if self.max_loss_weight != ObjectiveSettings.max_loss_weight and self.loss_weighting == "none":
            raise ValueError("--max_loss_weight has an effect only with --loss_weighting velocity")

    def noise_fields(self) -> dict[str, str | float]:
        """What a checkpoint must agree with; empty for the paper's objective, as checkpoints from before know no other."""
        fields = {}
        if self.resampled_history:
            fields = {"resampled_history": self.resampled_history, "resampled_steps": self.resampled_steps}
        if self.weighting_scheme != "none":
            fields |= {"weighting_scheme": self.weighting_scheme, "uniform_share": self.uniform_share}
            names = ("mode_scale",) if self.weighting_scheme == "mode" else ("logit_mean", "logit_std")
            fields |= {name: getattr(self, name) for name in names}
        if self.loss_weighting != "none":
            fields |= {"loss_weighting": self.loss_weighting, "max_loss_weight": self.max_loss_weight}
        return fields

    def check_sampling(self, sampling: SamplingSettings) -> None:
        """
        Raises:
            ValueError: samples are too short for these clips.
        """
        if self.clips in (None, "random") and sampling.least_num_frames < 2:
            raise ValueError(
                "--clips random cuts a sample into 2 clips at least: single frames are trained by --clips equal:1"
            )
        kind, size = split_clips(self.clips or "random", self.max_clips)
        if kind == "first" and size >= sampling.num_frames:
            raise ValueError(
                f"--clips {self.clips} gives {size} frames, and samples have at most {sampling.num_frames}: none is left to "
                "predict. Give fewer, or more by --max_num_frames"
            )


@dataclass(kw_only=True)
class DistillationSettings:
    """What a student learns from a teacher of many guided steps, and who it is."""

    student: Literal["full", "lora"] = option(
        "full", "full: a pipeline of its own; lora: a small adapter of the teacher's"
    )
    guidance_scale: float | None = option(
        None, "of the teacher, by history; the student then needs none; default: the pipeline's own", type=finite_float
    )
    grid_steps: int = option(32, "steps of the teacher from noise to a clip", type=positive_int)
    consistency_loss: Literal["pseudo_huber", "l2"] = option("pseudo_huber")
    huber_c: float = option(
        0.01, "of pseudo_huber: errors above it count by their size, below by its square", type=positive_float
    )
    num_inference_steps: int = option(
        2, "at inference, a clip: kept in the saved pipeline or adapter", type=positive_int
    )

    def __post_init__(self):
        if self.huber_c != DistillationSettings.huber_c and self.consistency_loss != "pseudo_huber":
            raise ValueError("--huber_c has an effect only with --consistency_loss pseudo_huber")
        if self.grid_steps < 2:
            raise ValueError(
                "--grid_steps 1 is one step of the teacher, from noise to its blurred guess: give 2 or more"
            )


@dataclass(kw_only=True)
class BatchSettings:
    """What a step trains on at once, and how many processes share it."""

    train_batch_size: int = option(
        1, "videos a micro-batch and process, or group of --context_parallel_size processes", type=positive_int
    )
    gradient_accumulation_steps: int = option(1, type=positive_int)
    context_parallel_size: int = option(
        1, "processes that compute a micro-batch together, each a share of its tokens (Ulysses)", type=positive_int
    )
    dataloader_num_workers: int = option(0, type=natural_int)


@dataclass(kw_only=True)
class OptimizerSettings:
    """The optimizer, its schedule, and the average of the weights."""

    optimizer: Literal["adamw", "muon"] = option("adamw")
    use_8bit_adam: bool = option(False, "AdamW with 8-bit state, by bitsandbytes")
    learning_rate: float = option(1e-4, type=natural_float)
    lr_scheduler: Schedule = option("constant_with_warmup")
    lr_warmup_steps: int = option(1000, type=natural_int)
    adam_beta1: float = option(0.9, type=moment_decay)
    adam_beta2: float = option(0.95, type=moment_decay)
    adam_weight_decay: float = option(0.1, type=natural_float)
    adam_epsilon: float = option(1e-5, type=positive_float)
    max_grad_norm: float = option(1.0, "inf not to clip", type=grad_norm)
    ema_decay: float = option(0.0, "0 for no moving average of the weights", type=ema_decay)


@dataclass(kw_only=True)
class LoopSettings:
    """How long a run goes, how it computes, and what it writes when."""

    output_dir: Path = option()
    max_train_steps: int = option(1000, type=positive_int)
    gradient_checkpointing: bool = option(False)
    torch_compile: bool = option(False, "compile the transformer's blocks")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "default: accelerate's configuration")
    logging_steps: int = option(20, type=positive_int)
    report_to: str | None = option(None, "tensorboard, trackio, wandb, …: a tracker of accelerate")
    tracker_project_name: str = option("videogpt")
    validation_steps: int = option(500, "between two validation losses", type=positive_int)
    checkpointing_steps: int = option(500, type=positive_int)
    checkpoints_total_limit: int = option(2, type=positive_int)
    resume_from_checkpoint: str | None = option(None, "a checkpoint-N folder, or 'latest'")


@dataclass(kw_only=True)
class RolloutSettings:
    """Predictions of held-out videos during training."""

    validation_rollout_steps: int | None = option(
        None, "between two predictions of held-out videos", type=positive_int
    )
    num_validation_rollouts: int = option(4, "videos predicted", type=positive_int)
    validation_given_frames: int | None = option(None, "shown of each; default: half of a sample", type=positive_int)
    validation_inference_steps: int = option(25, "denoising steps of a prediction", type=positive_int)

    def check_run(self, loop: LoopSettings, sampling: SamplingSettings) -> None:
        """
        Raises:
            ValueError: predictions would fall between validations, or nothing would be left to predict.
        """
        # Of a run whose steps follow from its videos, these are not known yet.
        every = loop.validation_steps or self.validation_rollout_steps
        if self.validation_rollout_steps and self.validation_rollout_steps % every:
            raise ValueError(
                f"--validation_rollout_steps {self.validation_rollout_steps} must be a multiple of --validation_steps "
                f"{every}: predictions are made when the validation loss is"
            )
        if sampling.max_num_frames is not None:
            self.check_given_frames(sampling)

    def check_given_frames(self, sampling: SamplingSettings) -> None:
        """
        Raises:
            ValueError: nothing of a sample would be left to predict.
        """
        given, most = self.validation_given_frames, sampling.num_frames - 1
        if given is not None and not 1 <= given <= most:
            raise ValueError(
                f"--validation_given_frames {given} must lie in 1..{most}: samples have {sampling.num_frames} frames"
            )


@dataclass(kw_only=True)
class HubSettings:
    """Where a trained model is published, if it is."""

    push_to_hub: bool = option(False)
    hub_model_id: str | None = option(None, "default: the name of --output_dir")
    hub_private: bool = option(False)


# Parts that are handed on together


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What the batches of a run are made from: which videos, the samples taken of them, their latents, how many at once.

    Attributes:
        output_dir: of the run; what cannot be used is listed there, and what is encoded before the first step is kept there.
        actions: of the videos, for a model that can be steered.
    """

    videos: VideoSettings
    sampling: SamplingSettings
    latents: LatentSettings
    batches: BatchSettings
    output_dir: Path
    actions: ActionSettings | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run trains, whatever it trains, and where the result goes."""

    loop: LoopSettings
    batches: BatchSettings
    optimizer: OptimizerSettings
    hub: HubSettings


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """What training by next clip diffusion adds: the loss, the predictions of held-out videos, how the result is saved.

    Attributes:
        loop: of the run, for its folder and its last step.
        output_dtype: of the saved transformer's weights.
    """

    objective: ObjectiveSettings
    rollouts: RolloutSettings
    loop: LoopSettings
    output_dtype: Literal["float32", "bfloat16"] = "float32"


# What the scripts compose


WITHOUT_CONTEXT_PARALLEL = {
    "context_parallel_size": "--context_parallel_size is for scripts that train by next clip diffusion: here a process has all "
    "tokens of its samples"
}


@dataclass(kw_only=True)
class TrainingSettings:
    """What every training run has. A script's settings are a subclass: it adds parts, and leaves out single options."""

    model: ModelSettings = part()
    videos: VideoSettings = part()
    sampling: SamplingSettings = part()
    latents: LatentSettings = part()
    batches: BatchSettings = part(without=WITHOUT_CONTEXT_PARALLEL)
    optimizer: OptimizerSettings = part()
    loop: LoopSettings = part()
    hub: HubSettings = part()

    def __post_init__(self):
        self.latents.check_videos(self.videos)

    @property
    def data(self) -> DataSettings:
        return DataSettings(
            videos=self.videos,
            sampling=self.sampling,
            latents=self.latents,
            batches=self.batches,
            output_dir=self.loop.output_dir,
        )

    @property
    def run(self) -> RunSettings:
        return RunSettings(loop=self.loop, batches=self.batches, optimizer=self.optimizer, hub=self.hub)


@dataclass(kw_only=True)
class NextClipSettings(TrainingSettings):
    """Of a run that trains by next clip diffusion, and predicts held-out videos."""

    batches: BatchSettings = part()
    objective: ObjectiveSettings = part()
    validation: RolloutSettings = part()

    def __post_init__(self):
        super().__post_init__()
        self.objective.check_sampling(self.sampling)
        self.validation.check_run(self.loop, self.sampling)

    @property
    def recipe(self) -> RecipeSettings:
        return RecipeSettings(objective=self.objective, rollouts=self.validation, loop=self.loop)


@dataclass(kw_only=True)
class PipelineSettings(NextClipSettings):
    """Of a run that trains the transformer of a pipeline, all of it, and saves the pipeline."""

    output_dtype: Literal["float32", "bfloat16"] = option("float32", "of saved weights")

    @property
    def recipe(self) -> RecipeSettings:
        return replace(super().recipe, output_dtype=self.output_dtype)


@dataclass(kw_only=True)
class SteeredSettings(NextClipSettings):
    """Of a run that may also train on what leads from frame to frame."""

    actions: ActionSettings = part()

    def __post_init__(self):
        super().__post_init__()
        self.actions.check_videos(self.videos)

    @property
    def data(self) -> DataSettings:
        return replace(super().data, actions=self.actions if self.actions.are_given else None)


@dataclass(kw_only=True)
class SteeredPipelineSettings(SteeredSettings, PipelineSettings):
    """Of a run that trains the transformer of a pipeline, which may be one that can be steered."""
