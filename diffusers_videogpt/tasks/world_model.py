"""A model that was trained on actions, used as a world: episodes that begin with a few frames and go on by what is done.

```python
world = WorldModel("steered")
episode = world.begin("start.mp4", seed=0)
(episode,) = world.advance([episode], [2])  # action 2; episode.frames[-1] is what it led to, uint8 (H, W, 3)
```

An episode looks back on the same number of frames from its first step to its last, so that any episodes can be advanced in one batch,
however long they have run. One that is advanced is a new object and the old one stays as it was: to rewind is to go
on from an earlier one. The noise of a step follows from the episode's seed and the number of the step.

Shapes: C latent channels, F frames that are looked back on, H × W pixels, h × w latent size, D numbers of a continuous action.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..actions import Actions, ActionSpace
from ..data.sampling import seeded_generator
from ..frame_latents import VideoInput
from ..pipeline_videogpt import VideoGPTPipeline
from ..saved_models import refuse_what_is_not
from ..transformer_videogpt import VideoGPTTransformerModel
from ..video_io import to_uint8_frames


# Denoising steps of a model that does not tell its own: fewer than elsewhere, as someone waits for each.
PLAY_STEPS = 8


@dataclass(frozen=True)
class Episode:
    """What is looked back on, and what the noise to come follows from.

    Attributes:
        latents: (C, F, h, w), on the model's device.
        frames: the same as uint8 (F, H, W, 3).
        actions: what led to each: int64 (F,), −1 for "no action"; or float32 (F, D), NaN for it.
        seed: of the noise.
        num_steps: how often it was advanced.
    """

    latents: torch.Tensor
    frames: np.ndarray
    actions: np.ndarray
    seed: int
    num_steps: int = 0


class WorldModel:
    """Advances episodes with a pipeline whose transformer was trained on actions.

    Args:
        model: a [`VideoGPTPipeline`], or its folder or Hub id.
        num_history_frames: F; at most the frames that the model looks back on. More take more time a step.
        frames_per_step: frames that one action leads to, predicted in parallel.
        num_inference_steps: denoising steps of these frames; default: the model's own, where it tells one, or 8.
        guidance_scale: history guidance; 1 is none, which takes half the time.
        action_guidance_scale: guidance by the action; 1 is none.
        device: where a model that is loaded goes; default: CUDA where there is one, else the CPU.

    Raises:
        ValueError: the model was not trained on actions, a folder holds something else, or a number is out of its range.
        OSError: there is no such folder, and the Hub does not have it or could not be asked.
    """

    def __init__(
        self,
        model: str | Path | VideoGPTPipeline,
        *,
        num_history_frames: int = 8,
        frames_per_step: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        action_guidance_scale: float = 1.0,
        device: str | torch.device | None = None,
    ):
        is_loaded = isinstance(model, VideoGPTPipeline)
        if not is_loaded:
            refuse_what_is_not(VideoGPTPipeline.__name__, model)
        config = (
            model.transformer.config
            if is_loaded
            else VideoGPTTransformerModel.load_config(str(model), subfolder="transformer")
        )
        space = ActionSpace.of(config)
        if space is None:
            name = "this model" if is_loaded else f"the model in {model}"
            raise ValueError(
                f"{name} was not trained on actions, so it can't be steered: train one with "
                "training_scripts/configs/physics_steered.yaml."
            )
        if not is_loaded:
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = VideoGPTPipeline.from_pretrained(model).to(device)
            model.set_progress_bar_config(disable=True)
        longest = model.config.max_context_frames
        if not 1 <= num_history_frames <= longest:
            raise ValueError(
                f"num_history_frames={num_history_frames} must be in 1..{longest}: the model looks back on no more."
            )
        if frames_per_step < 1:
            raise ValueError(f"frames_per_step={frames_per_step} must be at least 1.")
        self.pipe, self.action_space = model, space
        self.num_history_frames, self.frames_per_step = num_history_frames, frames_per_step
        self.num_inference_steps = num_inference_steps or model.config.num_inference_steps or PLAY_STEPS
        reads_history_once = self.num_inference_steps == 1 and guidance_scale == action_guidance_scale == 1
        self._settings = {
            "use_kv_cache": not reads_history_once,  # then no later step reads what a cache would keep
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": guidance_scale,
            "action_guidance_scale": action_guidance_scale,
            "frames_per_clip": frames_per_step,
            "max_context_frames": num_history_frames,
            "num_frames": frames_per_step,
            "output_type": "latent",
        }

    def begin(
        self,
        video: VideoInput,
        actions: Actions | None = None,
        *,
        seed: int,
        height: int | None = None,
        width: int | None = None,
    ) -> Episode:
        """An episode that goes on from the end of a video.

        Args:
            video: in any form that a pipeline takes, of F frames or more; the last F count.
            actions: that led to its frames, one each; default: "no action".
            seed: of the noise of all its steps.
            height, width: in pixels; default: the size that the pipeline gives this video.

        Raises:
            ValueError: it has fewer frames, or another number of actions.
        """
        length = self.num_history_frames
        pixels = self.pipe.prepare_frames(video, height, width)[:1]
        num_given = pixels.shape[1]
        if num_given < length:
            raise ValueError(f"The video has {num_given} frames, an episode begins with {length}: give a longer one.")
        if actions is None:
            suffix = () if self.action_space.is_discrete else (self.action_space.action_dim,)
            led = np.full((num_given, *suffix), -1 if self.action_space.is_discrete else np.nan)
            led = led.astype(np.int64 if self.action_space.is_discrete else np.float32)
        else:
            led = self.action_space.read(actions)
            if len(led) != num_given:
                raise ValueError(f"The video has {num_given} frames and {len(led)} actions: give one a frame.")
        pixels = pixels[:, -length:]
        latents = self.pipe.encode_frames(pixels, seeded_generator(seed, "given"))[0]
        shown = (pixels[0].permute(0, 2, 3, 1).numpy() + 1) / 2
        return Episode(latents, to_uint8_frames(shown), led[-length:], seed)

    def advance(self, episodes: Sequence[Episode], actions: Actions) -> list[Episode]:
        """All episodes one step on, in one batch; each comes out as it would alone.

        Args:
            episodes: of one frame size.
            actions: one an episode: (E,) whole numbers or (E, D), −1 or NaN for "no action".

        Raises:
            ValueError: an action is none of this model's, or there are not as many as episodes.
        """
        steps = self.action_space.read(actions)
        if len(steps) != len(episodes):
            raise ValueError(f"{len(steps)} actions were given for {len(episodes)} episodes: give one each.")
        length, count = self.num_history_frames, self.frames_per_step
        steps = np.repeat(steps[:, None], count, axis=1)
        with torch.inference_mode():  # what episodes keep is joined outside, so that it can be learnt from
            clips = self.pipe(
                video_latents=torch.stack([episode.latents for episode in episodes]),
                history_actions=np.stack([episode.actions for episode in episodes]),
                actions=steps,
                generator=[seeded_generator(episode.seed, episode.num_steps) for episode in episodes],
                **self._settings,
            ).frames
            decoded = self.pipe.decode_latents(clips, "np")
        return [
            replace(
                episode,
                latents=torch.cat([episode.latents, clip], dim=1)[:, -length:],
                frames=np.concatenate([episode.frames, to_uint8_frames(frames)])[-length:],
                actions=np.concatenate([episode.actions, led])[-length:],
                num_steps=episode.num_steps + 1,
            )
            for episode, clip, frames, led in zip(episodes, clips, decoded, steps, strict=True)
        ]
