"""What a training of an adapter found: its loss and its predictions of held-out videos, beside the base's and a still picture.

Shapes: F given frames, N predicted frames, H × W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..film_strips import write_film_strip
from ..metrics.rollout_scores import mse_by_frame


@dataclass(frozen=True)
class AdapterReport:
    """Of a run that trained an adapter.

    Attributes:
        rank: of the adapter.
        trained_parameters: numbers in it.
        num_videos: trained on; `None` of a stream.
        learning_rate: of the optimizer, after its warm-up.
        last_step, kept_step: of the run, and the one whose weights are saved.
        loss: "base" and "LoRA": mean loss of the held-out videos; empty where there are none.
        num_predicted: held-out videos that were predicted.
        error: "still", "base" and "LoRA": mean squared error of these, of pixels in [0, 1]; empty where there are none.
    """

    rank: int
    trained_parameters: int
    num_videos: int | None
    learning_rate: float
    last_step: int
    kept_step: int
    loss: dict[str, float]
    num_predicted: int
    error: dict[str, float]

    @property
    def text(self) -> str:
        """In sentences, for who waited for the run."""
        videos = "a stream of videos" if self.num_videos is None else f"{self.num_videos} videos"
        lines = [
            f"An adapter of rank {self.rank} with {self.trained_parameters:,} parameters learnt from {videos} at a rate of "
            f"{self.learning_rate:.1e}."
        ]
        if not self.loss:
            return f"{lines[0]} No video was held out: whether it carries to others is not known."
        base, adapted = self.loss["base"], self.loss["LoRA"]
        lines.append(
            f"Loss of held-out videos: {base:.4f} by the base, {adapted:.4f} by the adapter of step {self.kept_step}, which is "
            f"kept (the run ended at {self.last_step})."
        )
        if adapted >= base:
            lines.append("It learnt nothing that carries to them: look at the videos, or lower --learning_rate.")
        if self.error:
            still, base = (self.error["LoRA"] / max(self.error[name], 1e-12) for name in ("still", "base"))
            lines.append(
                f"Error of {self.num_predicted} held-out predictions: {still:.2f} × that of a still picture, {base:.2f} × the "
                "base's."
            )
            if still >= 1:
                lines.append("A still picture is nearer to the truth: more videos, or more alike, are needed.")
        return "\n".join(lines)


def held_out_errors(
    videos: Sequence[np.ndarray], predictions: Mapping[str, Sequence[np.ndarray]], *, num_given: int
) -> dict[str, float]:
    """Mean squared errors of pixels in [0, 1], of a still picture and of each prediction; empty without videos.

    Args:
        videos: each uint8 (F + N, H, W, 3).
        predictions: by name, of each video uint8 (N, H, W, 3).
        num_given: F.
    """
    if not videos:
        return {}
    truths = [video[num_given:] for video in videos]
    stills = [np.broadcast_to(video[num_given - 1], truth.shape) for video, truth in zip(videos, truths, strict=True)]
    return {
        name: float(np.mean([mse_by_frame(made, truth) for made, truth in zip(rows, truths, strict=True)]))
        for name, rows in {"still": stills, **predictions}.items()
    }


def write_comparison(
    path: str | Path,
    videos: Sequence[np.ndarray],
    *,
    predictions: Mapping[str, Sequence[np.ndarray]],
    num_given: int,
    fps: float | None,
) -> Path:
    """One film strip of all videos: still, each prediction, and truth, one below the other. Arguments as in [`held_out_errors`]."""
    rows = {}
    for index, video in enumerate(videos):
        given = video[:num_given]
        rows[f"{index + 1} still"] = np.concatenate([given, np.repeat(given[-1:], len(video) - num_given, axis=0)])
        for name, made in predictions.items():
            rows[f"{index + 1} {name}"] = np.concatenate([given, made[index]])
        rows[f"{index + 1} truth"] = video
    return write_film_strip(path, rows, num_given=num_given, fps=fps)
