"""Video retrieval (paper, §4.3): videos and texts as unit vectors of one space, near where they belong together.

    pipe = VideoGPTRetrievalPipeline.from_pretrained("physics_retrieval")
    similarity = pipe(["two red balls fall"], ["a.mp4", "b.mp4"])          # (1, 2), in [−1, 1]

Shapes: B videos or texts, N clips of a video, C latent channels, F frames, h × w latent size, L text tokens, E width of the
text feature, W width of the video feature, D channels of the common space.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from ..conditions import encode_text, text_width
from ..data.sampling import Sampling
from ..data.videos import VideoTable
from ..diffusers_internals import WholeWeightsMixin, cast_as_loaded, refuse_unread_tensors
from ..saved_models import VideoGPTLoadingMixin
from ..transformer_videogpt import VideoGPTTransformerModel
from .token_pooling import pool_clean_tokens, pooled_size
from .trunk import VideoGPTTrunkMixin, copy_into_trunk, make_trunk, trunk_config, trunk_width
from .video_features import clip_latents, clips_of, read_clips, sampling_of


Videos = Sequence[str | Path | np.ndarray]

PAPER_SAMPLING = {"max_num_frames": 8, "height": 224, "width": 224}
MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound, which keeps the loss from growing sharper and sharper


class Projection(nn.Module):
    """Features (B, width) of any scale → unit vectors, fp32 (B, D)."""

    def __init__(self, width: int, projection_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, projection_dim, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return normalize(self.linear(self.norm(features.to(self.linear.weight.dtype))).float(), dim=-1)


def pool_text(text_encoder: PreTrainedModel, states: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
    """States of [`~conditions.encode_text`] (B, L, E) and their mask (B, L) → one feature a text, fp32.

    CLIP's text models are pooled as they do it themselves: at the last real token, behind their projection if they have one
    (`pooler_output`, `text_embeds`). All others by the mean over the real tokens, as sentence encoders are; the `pooler` that
    BERT brings from its pretraining is not used.
    """
    states = states.float()
    if isinstance(text_encoder, CLIPTextModel | CLIPTextModelWithProjection):
        last = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        projection = getattr(text_encoder, "text_projection", None)
        return last if projection is None else projection(last.to(text_encoder.dtype)).float()
    weights = mask[..., None].to(states)
    return (states * weights).sum(1) / weights.sum(1)


def text_feature_dim(text_encoder: PreTrainedModel) -> int:
    """E, of [`pool_text`]."""
    if isinstance(text_encoder, CLIPTextModelWithProjection):
        return text_encoder.config.projection_dim
    return text_width(text_encoder)


class VideoGPTForVideoRetrieval(VideoGPTTrunkMixin, WholeWeightsMixin, ModelMixin, ConfigMixin):
    """A Video-GPT transformer up to a layer, and two projections: of its pooled clean tokens, and of a text feature.

    Make one with [`from_transformer`].

    Args:
        transformer_config (`dict`): arguments of a [`VideoGPTTransformerModel`] of as many layers as are used.
        text_feature_dim (`int`): E.
        projection_dim (`int`, defaults to `256`): D.
        pooling (`str`, defaults to `"mean"`): see [`~token_pooling.pool_clean_tokens`].
    """

    _skip_layerwise_casting_patterns = [*VideoGPTTrunkMixin._skip_layerwise_casting_patterns, "projection"]

    @register_to_config
    def __init__(
        self, transformer_config: dict, text_feature_dim: int, projection_dim: int = 256, pooling: str = "mean"
    ):
        super().__init__()
        self.transformer = make_trunk(transformer_config)
        self.video_projection = Projection(pooled_size(trunk_width(transformer_config), pooling), projection_dim)
        self.text_projection = Projection(text_feature_dim, projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # as CLIP begins

    @classmethod
    def from_transformer(
        cls,
        transformer: VideoGPTTransformerModel,
        text_feature_dim: int,
        *,
        layer: int | None = None,
        projection_dim: int = 256,
        pooling: str = "mean",
    ) -> "VideoGPTForVideoRetrieval":
        """Takes the weights of a transformer up to `layer`; the projections are new.

        Args:
            transformer: its class and text tokens, if it has any, are left out.
            text_feature_dim: width of the text encoder's features.
            layer: the last one used, from 1 on; negative counts from the end; default: two thirds of the layers.
            projection_dim: width D of the space that both share.
            pooling: "mean", or "mean_std" with the standard deviation of the tokens too.

        Raises:
            ValueError: there is no such layer or pooling.
        """
        model = cls(trunk_config(transformer, layer), text_feature_dim, projection_dim, pooling)
        copy_into_trunk(model.transformer, transformer)
        return cast_as_loaded(model, transformer.dtype).to(transformer.device).eval()

    def forward(
        self,
        latents: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """
        Args:
            latents (`torch.Tensor` of shape (B, C, F, h, w), *optional*): scaled, a clip each; or
            video_features (`torch.Tensor` of shape (B, W), *optional*): of [`~token_pooling.pool_clean_tokens`].
            text_features (`torch.Tensor` of shape (B, E), *optional*): of [`pool_text`].

        Returns:
            Unit vectors of the videos and of the texts, fp32 (B, D) each or `None`, and the factor of the logits, which is
            1 / temperature.

        Raises:
            ValueError: if text features are of another width.
        """
        if text_features is not None and text_features.shape[-1] != self.config.text_feature_dim:
            raise ValueError(
                f"The text features are {text_features.shape[-1]} wide, this model takes {self.config.text_feature_dim}: use "
                "the text encoder that it was trained with."
            )
        if latents is not None:
            video_features = pool_clean_tokens(self.transformer, latents, layer=-1, pooling=self.config.pooling)
        videos = None if video_features is None else self.video_projection(video_features)
        texts = None if text_features is None else self.text_projection(text_features)
        return videos, texts, self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()


class _GatherRows(torch.autograd.Function):
    """(B, D) of each process → (B × processes, D), on each of them.

    All processes compute one and the same loss from it, so its gradient by the own rows, times the number of processes, is
    what they all say about these rows. Averaging gradients over processes, as data parallelism does, then gives the
    gradient of one process with the whole batch.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.num_rows = len(rows)
        return gather(rows)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        state = PartialState()
        return gradient.split(ctx.num_rows)[state.process_index] * state.num_processes


def contrastive_loss(
    video_embeds: torch.Tensor, text_embeds: torch.Tensor, *, logit_scale: torch.Tensor, captions: Sequence[str]
) -> torch.Tensor:
    """Cross entropy of finding each video's text, and each text's video, among those of all processes of the `Accelerator`.

    Videos of one caption are no wrong answers to each other's text: they are left out of its sum, and so are equal texts of
    each other's video.

    Args:
        video_embeds, text_embeds: unit vectors (B, D) of this process; all processes have the same B.
        logit_scale: 1 / temperature.
        captions: the B texts.

    Returns:
        A scalar, the same on every process.
    """
    videos, texts = _GatherRows.apply(video_embeds), _GatherRows.apply(text_embeds)
    digests = [hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions]
    keys = gather(torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], device=videos.device))
    same_text = (keys[:, None] == keys[None]).fill_diagonal_(False)
    with torch.autocast(videos.device.type, enabled=False):  # a temperature of 1 / 100 leaves bf16 no digits
        logits = (logit_scale * texts @ videos.T).masked_fill(same_text, -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


class VideoGPTRetrievalPipeline(VideoGPTLoadingMixin, DiffusionPipeline):
    """Videos and texts → unit vectors of one space, whose products tell how well they fit.

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`]): of the model that the transformer is from.
        retriever ([`VideoGPTForVideoRetrieval`]): transformer and projections.
        text_encoder (`PreTrainedModel`): of `transformers`.
        tokenizer (`PreTrainedTokenizerBase`): of the text encoder.
        sampling (`dict`, *optional*): fields of the [`~data.sampling.Sampling`] that clips are taken by; default: 8
            frames of 224 × 224, as in the paper.
        num_clips (`int`, defaults to `1`): of a video, spread evenly; their vectors are averaged.
    """

    model_cpu_offload_seq = "text_encoder->vae->retriever"

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        retriever: VideoGPTForVideoRetrieval,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: dict | None = None,
        num_clips: int = 1,
    ):
        super().__init__()
        refuse_unread_tensors({"vae": vae, "text_encoder": text_encoder})
        self.register_modules(vae=vae, retriever=retriever, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(sampling=json.loads(json.dumps(sampling or PAPER_SAMPLING)), num_clips=num_clips)
        width = text_feature_dim(text_encoder)
        if width != retriever.config.text_feature_dim:
            raise ValueError(
                f"{type(text_encoder).__name__} gives text features {width} wide, the retriever takes "
                f"{retriever.config.text_feature_dim}: load the text encoder that it was trained with."
            )

    @property
    def sampling(self) -> Sampling:
        """How clips are taken from videos."""
        return sampling_of(self.config.sampling)

    @torch.no_grad()
    def encode_texts(self, texts: str | Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """One text or several → unit vectors (B, D), on the CPU. What is longer than the encoder takes is cut, with a warning.

        Args:
            texts: none of them empty.
            batch_size: encoded at once.

        Raises:
            ValueError: if there is no text, or an empty one.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"Give at least one text, and none that is empty, got {texts!r}.")
        embeds = []
        for first in range(0, len(texts), batch_size):
            states, mask = encode_text(self.text_encoder, self.tokenizer, texts=texts[first : first + batch_size])
            features = pool_text(self.text_encoder, states, mask=mask).to(self.retriever.device)
            embeds.append(self.retriever(text_features=features)[1].cpu())
        return torch.cat(embeds)

    @torch.no_grad()
    def encode_clips(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (N, C, F, h, w) of the clips of one video → its unit vector (D,), on the CPU."""
        return normalize(self.retriever(latents=latents)[0].mean(0), dim=-1).cpu()

    def encode_table(self, table: VideoTable) -> Iterator[tuple[int, torch.Tensor]]:
        """(index, unit vector) of the videos of a table; those that cannot be read go into `table.dropped`."""
        for index, latents in read_clips(table, range(len(table)), vae=self.vae, num_clips=self.config.num_clips):
            yield index, self.encode_clips(latents)

    def encode_videos(self, videos: Videos) -> torch.Tensor:
        """Videos → unit vectors (B, D), on the CPU.

        Args:
            videos: paths, or uint8 (F, H, W, 3), whose frames follow each other as `sampling` expects of a file.

        Raises:
            ValueError: there is no video, or one cannot be read or is shorter than a clip.
        """
        if not len(videos):
            raise ValueError("`videos` is empty: give at least one.")
        clips = (clips_of(video, self.sampling, num_clips=self.config.num_clips) for video in videos)
        return torch.stack([self.encode_clips(clip_latents(self.vae, x)) for x in clips])

    def __call__(self, texts: str | Sequence[str], videos: Videos) -> torch.Tensor:
        """How well each text fits each video: cosines (texts, videos). Arguments as of [`encode_texts`], [`encode_videos`]."""
        return self.encode_texts(texts) @ self.encode_videos(videos).T
