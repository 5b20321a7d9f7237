"""Video classification (paper, §4.3): one linear layer on the pooled clean tokens of a layer.

    model, vae = load_classifier("ucf_probe")
    classify_videos(model, vae, videos="dive.mp4")         # [[("Diving", 0.93), ("CliffDiving", 0.05), …]]

Shapes: B clips, K classes, C latent channels, F frames, h × w latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from ..data.sampling import Sampling
from ..diffusers_internals import WholeWeightsMixin
from ..frame_latents import load_autoencoder
from ..saved_models import VideoGPTLoadingMixin
from ..transformer_videogpt import VideoGPTTransformerModel
from .token_pooling import pool_clean_tokens, pooled_size
from .trunk import VideoGPTTrunkMixin, copy_into_trunk, make_trunk, trunk_config, trunk_width
from .video_features import clip_latents, clips_of, sampling_config, sampling_of


def normalized(features: torch.Tensor) -> torch.Tensor:
    """What the head reads: features (…, D) of mean 0 and variance 1, whatever the scale of the layer's residual stream."""
    return F.layer_norm(features, features.shape[-1:])


@dataclass
class VideoClassifierOutput(BaseOutput):
    """What the classifier says.

    Attributes:
        logits (`torch.Tensor` of shape (B, K)): fp32.
        loss (`torch.Tensor`, *optional*): mean cross-entropy, a scalar, if there were labels.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class VideoGPTForVideoClassification(
    VideoGPTLoadingMixin, VideoGPTTrunkMixin, WholeWeightsMixin, ModelMixin, ConfigMixin
):
    """A Video-GPT transformer up to a layer, and a linear head on its pooled clean tokens, normalised.

    Make one with [`from_transformer`].

    Args:
        transformer_config (`dict`): arguments of a [`VideoGPTTransformerModel`] of as many layers as are used.
        id2label (`dict`): names of the K classes by their numbers, which are strings, as JSON has them.
        pooling (`str`, defaults to `"mean"`): see [`~token_pooling.pool_clean_tokens`].
        sampling (`dict`, *optional*): fields of the [`~data.sampling.Sampling`] that clips were taken by.
    """

    _skip_layerwise_casting_patterns = [*VideoGPTTrunkMixin._skip_layerwise_casting_patterns, "head"]

    @register_to_config
    def __init__(
        self,
        transformer_config: dict,
        id2label: dict[str, str],
        pooling: str = "mean",
        sampling: dict | None = None,
    ):
        super().__init__()
        self.transformer = make_trunk(transformer_config)
        self.head = nn.Linear(pooled_size(trunk_width(transformer_config), pooling), len(id2label))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_transformer(
        cls,
        transformer: VideoGPTTransformerModel,
        id2label: Sequence[str] | dict[int, str],
        *,
        layer: int | None = None,
        pooling: str = "mean",
        sampling: Sampling | None = None,
    ) -> "VideoGPTForVideoClassification":
        """Takes the weights of a transformer up to `layer`, in fp32; the head begins at zero: all classes alike.

        Args:
            transformer: its class and text tokens, if it has any, are left out.
            id2label: names of the classes, in the order of their numbers.
            layer: the last one used, from 1 on; negative counts from the end; default: two thirds of the layers.
            pooling: see [`~token_pooling.pool_clean_tokens`].
            sampling: how clips are taken from videos: kept for [`classify_videos`].

        Raises:
            ValueError: there is no such layer or pooling, or fewer than two classes.
        """
        names = list(id2label.values()) if isinstance(id2label, dict) else list(id2label)
        if len(set(names)) < max(len(names), 2):
            raise ValueError(f"`id2label` needs at least two classes of different names, got {names}.")
        model = cls(
            trunk_config(transformer, layer),
            {str(number): name for number, name in enumerate(names)},
            pooling,
            None if sampling is None else sampling_config(sampling),
        )
        copy_into_trunk(model.transformer, transformer)
        return model.to(transformer.device).eval()

    @property
    def labels(self) -> dict[str, int]:
        """Class names → their numbers, in the order of these."""
        return {self.config.id2label[str(number)]: number for number in range(len(self.config.id2label))}

    @property
    def sampling(self) -> Sampling:
        """How clips are taken from videos. Raises a `ValueError` if the model does not know."""
        if self.config.sampling is None:
            raise ValueError("This model does not say how clips are taken: pass `sampling` to `from_transformer`.")
        return sampling_of(self.config.sampling)

    def label_ids(self, names: Sequence[str]) -> torch.Tensor:
        """Names → int64 (B,), on the model's device. Raises a `ValueError` that names those that are unknown."""
        unknown = sorted(set(names) - set(self.labels))
        if unknown:
            known = ", ".join(list(self.labels)[:20])
            raise ValueError(f"This model has the classes {known}, not {', '.join(unknown[:5])}.")
        return torch.tensor([self.labels[name] for name in names], device=self.device)

    def forward(
        self, latents: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> VideoClassifierOutput | tuple[torch.Tensor, ...]:
        """Classifies clips.

        Args:
            latents (`torch.Tensor` of shape (B, C, F, h, w)): scaled.
            labels (`torch.Tensor` of shape (B,), *optional*): integers in [0, K), for the loss.
            return_dict (`bool`, defaults to `True`): whether to return an output object or a tuple.

        Raises:
            ValueError: a label is out of range, or the latents are not of this model.
        """
        num_classes = self.head.out_features
        if labels is not None and not ((labels >= 0) & (labels < num_classes)).all():
            raise ValueError(
                f"Labels of {num_classes} classes are numbers in 0..{num_classes - 1}, got {labels.tolist()}."
            )
        features = normalized(pool_clean_tokens(self.transformer, latents, layer=-1, pooling=self.config.pooling))
        logits = self.head(features.to(self.head.weight.dtype)).float()
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if not return_dict:
            return (logits,) if loss is None else (logits, loss)
        return VideoClassifierOutput(logits=logits, loss=loss)


def load_classifier(name: str | Path) -> tuple[VideoGPTForVideoClassification, ModelMixin]:
    """What `train_classification.py` saved, a folder or a Hub id: the classifier, and the VAE in its folder `vae`."""
    return VideoGPTForVideoClassification.from_pretrained(name), load_autoencoder(name, subfolder="vae")


@torch.no_grad()
def classify_videos(
    model: VideoGPTForVideoClassification,
    vae,
    *,
    videos: str | Path | np.ndarray | Sequence[str | Path | np.ndarray],
    num_clips: int = 3,
    top_k: int = 5,
) -> list[list[tuple[str, float]]]:
    """The most probable classes of videos, the mean over clips spread evenly over each.

    Args:
        model: that was saved with its sampling, which says what a clip is.
        vae: that the model was trained with.
        videos: one or several: paths, or uint8 (F, H, W, 3), whose frames follow each other as the model's sampling
            expects of a file.
        num_clips: of each video.
        top_k: classes returned.

    Returns:
        For each video up to `top_k` pairs of class and probability, the most probable first.

    Raises:
        ValueError: a video is shorter than a clip or cannot be read, or the model knows no sampling.
    """
    sampling = model.sampling
    several = [videos] if isinstance(videos, str | Path | np.ndarray) else videos
    results = []
    for video in several:
        latents = clip_latents(vae, clips_of(video, sampling, num_clips=num_clips))
        probabilities = model(latents).logits.softmax(dim=-1).mean(dim=0)
        best = probabilities.topk(min(top_k, len(probabilities)))
        names = list(model.labels)
        results.append([(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
    return results
