"""How good a model is at each noise level: what a loss that is a mean over all of them hides."""

import torch

from .objective import DenoisedClips


NUM_BINS = 5  # of α: [0, 0.2), … [0.8, 1]


class ErrorsByAlpha:
    """Sums up the errors of frames by the α that they were given with.

    Of each bin of α two numbers are told. `loss_at_0.4` is the mean squared error of the predicted clean latents x̂ of frames
    with α in [0.4, 0.6). `velocity_error_at_0.4` is the error of the velocity (x̂ − ψ) / (1 − α), over that of giving the
    noisy input ψ back as it came: 1 is a model that does nothing, above 1 one that does harm. At one α both velocities are
    x̂ and ψ divided alike, so it is the sum of the squared errors of x̂ over that of ψ.
    """

    def __init__(self):
        self._sums: torch.Tensor | None = None

    def add(self, clips: DenoisedClips) -> None:
        """Counts every frame of a batch."""
        errors, input_errors = clips.frame_errors()
        bins = (clips.alphas * NUM_BINS).long().clamp(0, NUM_BINS - 1).flatten()
        values = torch.stack([torch.ones_like(errors), errors, input_errors]).flatten(1).double()
        sums = values.new_zeros(3, NUM_BINS).index_add_(1, bins, values)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """What was summed up since the last call, (3 · bins,) in fp64; it begins anew."""
        sums, self._sums = self._sums, None
        return torch.zeros(3 * NUM_BINS, dtype=torch.float64, device=device) if sums is None else sums.flatten()

    @staticmethod
    def describe(sums: torch.Tensor) -> dict[str, float]:
        """The numbers by name, of the bins that had a frame."""
        numbers = {}
        for index, (count, error, input_error) in enumerate(sums.view(3, NUM_BINS).T.tolist()):
            if count:
                numbers[f"loss_at_{index / NUM_BINS:.1f}"] = error / count
                numbers[f"velocity_error_at_{index / NUM_BINS:.1f}"] = error / max(input_error, 1e-12)
        return numbers


def format_errors(numbers: dict[str, float]) -> str:
    """A table in Markdown of what [`ErrorsByAlpha.describe`] told; empty where there is nothing."""
    starts = [name.rpartition("_")[2] for name in numbers if name.startswith("loss_at_")]
    if not starts:
        return ""
    rows = {"squared error of the latents": "loss_at_", "velocity error over that of the input": "velocity_error_at_"}
    lines = [
        "| α, the share of signal | "
        + " | ".join(f"{start} – {float(start) + 1 / NUM_BINS:.1f}" for start in starts)
        + " |",
        "|---" * (1 + len(starts)) + "|",
    ]
    lines += [
        f"| {label} | " + " | ".join(f"{numbers[prefix + start]:.3g}" for start in starts) + " |"
        for label, prefix in rows.items()
    ]
    return "\n".join(lines)
