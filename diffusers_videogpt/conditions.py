"""What a video is asked to show: classes by name or number, and text by way of a frozen encoder.

Shapes: B videos, L text tokens, E width of the text encoder.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from diffusers.utils import is_transformers_available, logging


if is_transformers_available():
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:  # a command has left it out, whose model has no text encoder
    PreTrainedModel = PreTrainedTokenizerBase = type(None)


logger = logging.get_logger(__name__)

# Arguments of the transformer by their names: `class_labels` (B,), `encoder_hidden_states` (B, L, E), and
# `encoder_attention_mask` (B, L) only where texts of a batch differ in length.
Conditions = dict[str, torch.Tensor]

UNLIMITED_TOKENS = 10**9  # tokenizers that know no limit name a larger one


def condition_lengths(conditions: Mapping[str, torch.Tensor]) -> int | list[int]:
    """Condition tokens in front of the clips, as [`~clips.make_clip_layout`] takes them: of all samples, or of each."""
    num_labels = int("class_labels" in conditions)
    if "encoder_attention_mask" in conditions:
        return (conditions["encoder_attention_mask"].sum(1) + num_labels).tolist()
    states = conditions.get("encoder_hidden_states")
    return num_labels + (0 if states is None else states.shape[1])


def check_tensors(**values: Any) -> None:
    """Raises a `ValueError` for the first value that is neither `None` nor a tensor, by its name."""
    for name, value in values.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise ValueError(f"`{name}` must be a `torch.Tensor`, got {type(value).__name__}.")


def check_kind_of_labels(class_labels: Any) -> None:
    """Raises a `ValueError` if these are neither a class nor several: a number, a name, or what has a length."""
    is_one = isinstance(class_labels, Integral | str) or getattr(class_labels, "ndim", 1) == 0
    if not is_one and not hasattr(class_labels, "__len__"):
        raise ValueError(f"`class_labels` must be numbers or names of classes, one or a list, got {class_labels!r}.")


def class_numbers(id2label: Mapping[int | str, str] | None) -> dict[str, int]:
    """Numbers → names, as a configuration has them, turned round; empty for `None`."""
    return {name: int(number) for number, name in (id2label or {}).items()}


def text_width(text_encoder: PreTrainedModel) -> int:
    """E. Raises a `ValueError` for a model that is no encoder of text alone."""
    width = getattr(text_encoder.config, "hidden_size", None)
    if width is None:
        raise ValueError(
            f"{type(text_encoder).__name__} has no `hidden_size`: give a text encoder, for example the text tower of CLIP "
            "(`CLIPTextModel`)."
        )
    return width


@torch.no_grad()
def encode_text(
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    texts: Sequence[str],
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts → the last layer's states of their tokens, special ones too.

    What is longer than the encoder takes is cut, with a warning that shows what was lost.

    Args:
        text_encoder: of `transformers`; of an encoder–decoder model, the encoder is used.
        tokenizer: its tokenizer.
        texts: B of them; "" is a text too.
        device: where the tokens go; by default where the encoder is.

    Returns:
        states (B, L, E) in the encoder's precision, on its device, of the longest text's L; and which of them are of real
        tokens, boolean (B, L), those first.
    """
    limits = (tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", UNLIMITED_TOKENS))
    max_length = min(limits) if min(limits) < UNLIMITED_TOKENS else None
    if max_length is not None:
        _warn_of_cut_texts(tokenizer, texts, max_length=max_length)
    tokens = tokenizer(
        list(texts),
        padding="longest",
        padding_side="right",
        truncation=max_length is not None,
        max_length=max_length,
        return_tensors="pt",
    ).to(text_encoder.device if device is None else device)
    encoder = text_encoder.get_encoder() if text_encoder.config.is_encoder_decoder else text_encoder
    states = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return states, tokens.attention_mask.bool()


def _warn_of_cut_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int) -> None:
    room = max_length - tokenizer.num_special_tokens_to_add()
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
        if len(ids) > room:
            logger.warning(
                f"A text has {len(ids)} tokens, the text encoder takes {room}. This was cut off: '{tokenizer.decode(ids[room:])}'"
            )


def as_text_conditions(states: torch.Tensor, mask: torch.Tensor) -> Conditions:
    """States and mask of [`encode_text`] → the transformer's arguments: without a mask if no text needs one."""
    length = int(mask.sum(1).max())
    states, mask = states[:, :length], mask[:, :length]
    return {"encoder_hidden_states": states} | ({} if mask.all() else {"encoder_attention_mask": mask})


@dataclass(frozen=True, kw_only=True)
class ConditionEncoder:
    """Makes the transformer's condition arguments of class labels and prompts.

    Attributes:
        num_classes: of the transformer; `None` if it was not trained on classes.
        text_embed_dim: E of the transformer; `None` if it was not trained on text.
        labels: class names → their numbers; empty if no names are known.
        text_encoder, tokenizer: `None` where texts come encoded already.
        dtype: of the transformer, which encoded texts are cast to.
        device: where all of it goes.
    """

    num_classes: int | None
    text_embed_dim: int | None
    labels: Mapping[str, int]
    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    dtype: torch.dtype
    device: torch.device

    def get_label_ids(self, class_labels: int | str | Sequence[int | str] | torch.Tensor) -> list[int]:
        """Classes by name or number, one or several → numbers.

        Raises:
            ValueError: if there are none, or for a name or number that the model does not know.
        """
        if self.num_classes is None:
            raise ValueError("`class_labels` were passed, but this model was not trained on classes: leave them out.")
        check_kind_of_labels(class_labels)
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.tolist()
        wanted = [class_labels] if isinstance(class_labels, Integral | str) else list(class_labels)
        if not wanted:
            raise ValueError("`class_labels` is empty: name at least one class, or leave it out.")
        numbers = []
        for label in wanted:
            if isinstance(label, str) and label not in self.labels:
                names = difflib.get_close_matches(label, self.labels, n=3) or list(self.labels)[:10]
                known = f"do you mean {', '.join(map(repr, names))}?" if names else "it knows no names: pass numbers."
                raise ValueError(
                    f"Unknown class {label!r} among the {self.num_classes} classes of this model: {known}"
                )
            number = self.labels[label] if isinstance(label, str) else label
            if not isinstance(number, Integral) or not 0 <= number < self.num_classes:
                raise ValueError(f"Class labels are numbers in 0..{self.num_classes - 1} or names, got {label!r}.")
            numbers.append(int(number))
        return numbers

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Prompts → what the transformer sees of them; hand it to any number of calls as `prompt_embeds`.

        Args:
            prompt: what to show, one or several.
            negative_prompt: what guidance leads away from; the empty text by default.
            do_classifier_free_guidance: whether the negative ones are wanted.
            num_videos_per_prompt: repeats each so often.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape (B, L, E)): returned as they are, instead.
            prompt_attention_mask, negative_prompt_attention_mask (`torch.Tensor` of shape (B, L)): `True` at their real
                tokens, which come first; all of them by default.

        Returns:
            `prompt_embeds`, `prompt_attention_mask`, `negative_prompt_embeds`, `negative_prompt_attention_mask`; the last
            two are `None` without guidance.

        Raises:
            ValueError: if the model or the pipeline takes no text, something is given twice or is empty, or sizes do not
                agree.
        """
        embeds, mask = self._encode_texts("prompt", prompt, embeds=prompt_embeds, mask=prompt_attention_mask)
        negative_embeds = negative_mask = None
        if do_classifier_free_guidance:
            if negative_prompt is None and negative_prompt_embeds is None:
                negative_prompt = ""
            negative_embeds, negative_mask = self._encode_texts(
                "negative_prompt", negative_prompt, embeds=negative_prompt_embeds, mask=negative_prompt_attention_mask
            )
            if negative_embeds.shape[0] not in (1, embeds.shape[0]):
                raise ValueError(
                    f"{negative_embeds.shape[0]} negative prompts for {embeds.shape[0]} prompts: give one, or one a prompt."
                )
            negative_embeds = negative_embeds.repeat_interleave(embeds.shape[0] // negative_embeds.shape[0], dim=0)
            negative_mask = negative_mask.repeat_interleave(embeds.shape[0] // negative_mask.shape[0], dim=0)
        prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask = (
            None if x is None else x.repeat_interleave(num_videos_per_prompt, dim=0)
            for x in (embeds, mask, negative_embeds, negative_mask)
        )
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def _encode_texts(self, name, prompt, *, embeds, mask) -> tuple[torch.Tensor, torch.Tensor]:
        width = self.text_embed_dim
        if width is None:
            raise ValueError(f"`{name}` was passed, but this model was not trained on text: leave it out.")
        if prompt is not None and embeds is not None:
            raise ValueError(f"Pass `{name}` or `{name}_embeds`, not both.")
        if embeds is not None:
            check_tensors(**{f"{name}_embeds": embeds, f"{name}_attention_mask": mask})
            if embeds.ndim != 3 or embeds.shape[2] != width or not embeds.shape[0] * embeds.shape[1]:
                raise ValueError(f"`{name}_embeds` must be (batch, tokens, {width}), got {list(embeds.shape)}.")
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
            if mask.shape != embeds.shape[:2] or (mask[:, 1:] & ~mask[:, :-1]).any():
                raise ValueError(
                    f"`{name}_attention_mask` must be {list(embeds.shape[:2])} with the real tokens first, got {list(mask.shape)}."
                )
            return embeds.to(self.device, self.dtype), mask
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`{name}` must be a text or a list of at least one, got {prompt!r}.")
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                f"This pipeline has no text encoder: load one and its tokenizer and pass them as `text_encoder=` and "
                f"`tokenizer=` to `from_pretrained`, or use `{name}_embeds`."
            )
        if text_width(self.text_encoder) != width:
            raise ValueError(
                f"The transformer takes text of width {width}, {type(self.text_encoder).__name__} gives "
                f"{text_width(self.text_encoder)}: load the text encoder that the model was trained with."
            )
        embeds, mask = encode_text(self.text_encoder, self.tokenizer, texts=texts, device=self.device)
        return embeds.to(self.device, self.dtype), mask.cpu()

    def encode_conditions(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> tuple[Conditions, Conditions | None]:
        """What is asked for, and what guidance leads away from ("no label", the negative prompt), for the transformer.

        A model that was trained on classes or text gets "no label" and the empty text where nothing is asked for: that is
        how it was trained. The second is `None` where nothing is asked for or `guidance_scale` is 1.

        Raises:
            ValueError: as [`get_label_ids`] and [`encode_prompt`]; or if there is something to lead away from but nothing
                to lead to, or labels and prompts differ in number.
        """
        has_prompt = prompt is not None or prompt_embeds is not None
        is_asked = has_prompt or class_labels is not None
        if not has_prompt and (negative_prompt is not None or negative_prompt_embeds is not None):
            raise ValueError("A negative prompt needs a `prompt`, which may be ''.")
        is_guided = is_asked and guidance_scale != 1.0
        conditions, negative = {}, {}
        if class_labels is not None or self.num_classes is not None:
            ids = [self.num_classes] if class_labels is None else self.get_label_ids(class_labels)
            conditions["class_labels"] = torch.tensor(ids, device=self.device)
            negative["class_labels"] = torch.full_like(conditions["class_labels"], self.num_classes)
        if has_prompt or self.text_embed_dim is not None:
            states, mask, negative_states, negative_mask = self.encode_prompt(
                prompt if has_prompt else "",
                negative_prompt,
                do_classifier_free_guidance=is_guided,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                prompt_attention_mask=prompt_attention_mask,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
            )
            conditions |= as_text_conditions(states, mask)
            if is_guided:
                negative |= as_text_conditions(negative_states, negative_mask)
        conditions, negative = (_of_one_size(c) for c in (conditions, negative))
        return conditions, negative if is_guided else None


def _of_one_size(conditions: Conditions) -> Conditions:
    """A single label goes with every prompt, a single prompt with every label."""
    sizes = {name: value.shape[0] for name, value in conditions.items()}
    largest = max(sizes.values(), default=1)
    if set(sizes.values()) - {1, largest}:
        raise ValueError(f"Labels and prompts differ in number, {sizes}: give one of them, or as many of both.")
    return {name: value.repeat_interleave(largest // value.shape[0], dim=0) for name, value in conditions.items()}
