"""What a run's settings name, made or loaded: videos, the sampling of frames, the autoencoder, the pipeline."""

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch

from ..actions import ActionSpace
from ..config_values import check_trained_with
from ..data.sampling import Sampling
from ..data.videos import VideoTable
from ..files import read_json
from ..frame_latents import load_autoencoder
from ..pipeline_videogpt import VideoGPTPipeline
from ..saved_models import refuse_other_kinds, refuse_what_is_not
from ..scheduling_next_clip_flow_match import NextClipFlowMatchScheduler
from ..transformer_videogpt import VideoGPTTransformerModel
from .phi3 import load_phi3_decoder
from .settings import (
    LONGEST_SIDE,
    NUM_FRAMES,
    ActionSettings,
    AutoencoderSettings,
    ModelSettings,
    ObjectiveSettings,
    RolloutSettings,
    SamplingSettings,
    VideoSettings,
)


def make_sampling(sampling: SamplingSettings) -> Sampling:
    interval = sampling.frame_interval or (1,)
    return Sampling(
        max_num_frames=sampling.num_frames,
        min_num_frames=sampling.min_num_frames,
        frame_interval=(interval[0], interval[-1]),
        fps=sampling.target_fps,
        longest_side=LONGEST_SIDE if sampling.longest_side is None else sampling.longest_side,
        height=sampling.height,
        width=sampling.width,
    )


def settle_from_base(
    sampling: SamplingSettings,
    model: AutoencoderSettings,
    *,
    objective: ObjectiveSettings | None = None,
    clips: str = "random",
    rollouts: RolloutSettings | None = None,
) -> None:
    """Sets what was not given to what the pipeline to start from was trained with: size, frame rate and number of frames
    of the samples, form of the clips.

    A model that was trained on small pictures learns slowly from large ones, and predicts at another size than it learnt;
    so with the others. Where the number of frames is the pipeline's, videos of half as many are used, too.

    Args:
        objective: of the run, if it has one whose clips may be chosen.
        clips: their form where no pipeline tells one.
        rollouts: of the run, if it predicts held-out samples.

    Raises:
        OSError, ValueError: there is no such pipeline, or what it tells is no size, rate, length or form; or its samples are
            too short for what was asked for.
    """
    base, config = model.pretrained_model_name_or_path, {}
    if base is not None:
        refuse_what_is_not(VideoGPTPipeline.__name__, base, revision=model.revision)
        config = VideoGPTPipeline.load_config(base, revision=model.revision)
    trained_with = config.get("trained_with") or {}
    check_trained_with(trained_with)
    if sampling.longest_side is None and sampling.height is None:
        sampling.longest_side = config.get("longest_side", LONGEST_SIDE)
    if sampling.frame_interval is None and sampling.target_fps is None:
        sampling.target_fps = trained_with.get("fps")
        sampling.frame_interval = (1,) if sampling.target_fps is None else None
    if sampling.max_num_frames is None:
        sampling.max_num_frames = trained_with.get("num_frames") or NUM_FRAMES
        if trained_with.get("num_frames") and sampling.min_num_frames is None:
            # Nobody asked for just so many frames, so it is no reason to leave out a video that is a little shorter.
            sampling.min_num_frames = max(sampling.max_num_frames // 2, 1)
    if objective is not None and objective.clips is None:
        objective.clips = trained_with.get("clips") or clips
        if objective.max_clips is None and objective.clips == "random":
            objective.max_clips = trained_with.get("max_clips")
        objective.__post_init__()
    if objective is not None:
        objective.check_sampling(sampling)
    if rollouts is not None:
        rollouts.check_given_frames(sampling)


def load_video_table(
    videos: VideoSettings, sampling: SamplingSettings, *, actions: ActionSettings | None = None
) -> VideoTable:
    """The usable videos of a source, with the `actions` that led to their frames if these are wanted.

    Raises:
        ValueError: what its readers refuse; or the source has no actions.
    """
    frames, told = make_sampling(sampling), {"actions": action_space_of(actions)}
    reading = {**videos.columns, "max_bad_fraction": videos.max_bad_fraction}
    if videos.lerobot_root is not None:
        if actions is not None and actions.action_column is not None:
            told["action_column"] = actions.action_column
        how = {"camera": videos.lerobot_camera, "max_bad_fraction": videos.max_bad_fraction}
        return VideoTable.from_lerobot(videos.lerobot_root, frames, **how, **told)
    if videos.num_simulated_scenes is not None:
        if actions is not None:
            raise ValueError("Simulated scenes follow physics alone: train without --num_actions and --action_dim.")
        num_frames = videos.frames_per_scene or sampling.num_frames
        return VideoTable.simulated(
            videos.num_simulated_scenes, num_frames, sampling=frames, world=videos.simulated_world
        )
    if videos.dataset_file is not None or videos.dataset_name is not None:
        told["action_column"] = None if actions is None else actions.action_column
    if videos.dataset_file is not None:
        return VideoTable.from_table(videos.dataset_file, frames, root=videos.instance_data_root, **reading, **told)
    if videos.dataset_name is not None:
        return VideoTable.from_dataset(
            videos.dataset_name,
            frames,
            split=videos.dataset_split,
            config_name=videos.dataset_config_name,
            **reading,
            **told,
        )
    return VideoTable.from_folder(videos.instance_data_root, frames, max_bad_fraction=videos.max_bad_fraction, **told)


def action_space_of(actions: ActionSettings | None) -> ActionSpace | None:
    """The actions that data have, as they are: only a model has a scale of them."""
    return None if actions is None else ActionSpace(actions.num_actions, actions.action_dim)


def load_vae(model: AutoencoderSettings):
    """The VAE of the pipeline, or the one given by itself, in `--vae_dtype`."""
    dtype = getattr(torch, model.vae_dtype)
    if model.pretrained_vae_path is not None:
        return load_autoencoder(model.pretrained_vae_path, dtype=dtype)
    refuse_other_kinds(model.pretrained_model_name_or_path, VideoGPTPipeline.__name__)
    return load_autoencoder(
        model.pretrained_model_name_or_path,
        subfolder="vae",
        revision=model.revision,
        variant=model.variant,
        dtype=dtype,
    )


def read_transformer_config(path: Path) -> dict[str, Any]:
    """The arguments of a new transformer, from a JSON file; a saved model's `config.json` is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or has a key that is no argument; names the nearest one.
    """
    config = {name: value for name, value in read_json(path).items() if not name.startswith("_")}
    known = list(inspect.signature(VideoGPTTransformerModel).parameters)
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            others = f"the nearest is '{near[0]}'" if near else f"there are {', '.join(known)}"
            raise ValueError(f"--transformer_config {path}: the transformer has no argument '{name}'; {others}.")
    return config


def load_pipeline(model: ModelSettings, sampling: SamplingSettings) -> VideoGPTPipeline:
    """The pipeline to start from; or a new one around a VAE, its transformer from nothing or from Phi-3's decoder, with as
    many channels as the VAE's latents.

    Raises:
        ValueError: the transformer takes latents of another number of channels; and what [`load_vae`] and
            [`read_transformer_config`] refuse.
    """
    config = read_transformer_config(model.transformer_config) if model.transformer_config else {}
    vae = load_vae(model)
    given = {"frames_per_clip": model.frames_per_clip, "guidance_scale": model.guidance_scale}
    given = {name: value for name, value in given.items() if value is not None}
    if model.pretrained_model_name_or_path is not None:
        pipe = VideoGPTPipeline.from_pretrained(
            model.pretrained_model_name_or_path, revision=model.revision, variant=model.variant, vae=vae
        )
        # Weights that are trained are kept in fp32, whatever they were published in.
        pipe.transformer.float()
        pipe.register_to_config(**given, longest_side=sampling.longest_pixels)
        widen_window(pipe, sampling.num_frames)
        return pipe
    transformer = VideoGPTTransformerModel(**{"in_channels": vae.config.latent_channels} | config)
    transformer.init_weights(torch.Generator().manual_seed(sampling.seed))
    if model.pretrained_phi3_path is not None:
        load_phi3_decoder(transformer, model.pretrained_phi3_path)
    inference = {"frames_per_clip": 8, "guidance_scale": 3.0} | given
    return VideoGPTPipeline(
        vae=vae,
        transformer=transformer,
        scheduler=NextClipFlowMatchScheduler(),
        max_context_frames=max(sampling.num_frames - inference["frames_per_clip"], 1),
        longest_side=sampling.longest_pixels,
        **inference,
    )


def widen_window(pipe: VideoGPTPipeline, num_frames: int) -> None:
    """A model that is trained on samples of `num_frames` looks back as far as they let it."""
    window = max(pipe.config.max_context_frames, num_frames - pipe.config.frames_per_clip)
    pipe.register_to_config(max_context_frames=window)
