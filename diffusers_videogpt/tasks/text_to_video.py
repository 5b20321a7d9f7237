"""Text → video (paper, §4.3): the tokens of a frozen text encoder before the clips, encoded once and cached.

Shapes: B videos, L text tokens, E width of the text encoder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..conditions import Conditions, encode_text, text_width
from ..extras import require
from ..files import hash_json
from ..pipeline_videogpt import VideoGPTPipeline
from ..saved_models import refuse_unreachable
from ..training.feed import MicroBatch, StreamSource
from ..weights import hash_weights
from .conditional_generation import ConditionalTraining, add_condition_tokens, all_records
from .settings import TextSettings


TextStates = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]  # B texts → (B, L, E), boolean (B, L)


def load_text_encoder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text encoder of `transformers` and its tokenizer: a folder or a Hub id of itself, or of a pipeline that has one.

    Raises:
        OSError: there is no such folder, and the Hub does not have it or could not be asked.
    """
    try:
        refuse_unreachable(name)
    except OSError as error:
        raise OSError(f"No text encoder: {error} A folder of one on this machine does as well.") from error
    try:
        DiffusionPipeline.load_config(name)
        folders = ("text_encoder", "tokenizer")
    except OSError:
        folders = ("", "")
    text_encoder = AutoModel.from_pretrained(name, subfolder=folders[0])
    return text_encoder.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(name, subfolder=folders[1])


def cache_texts(
    folder: str | Path, texts: Sequence[str], *, text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TextStates:
    """Encodes texts into an Arrow file of `folder`, if it is not there already, and reads them from it.

    The file's name tells the weights, the tokenizer and the texts.
    """
    datasets = require("datasets", "Captions are encoded once and kept, which needs datasets", extra="train")
    made_of = [hash_weights(text_encoder), tokenizer.get_vocab(), tokenizer.model_max_length, list(texts)]
    fingerprint = hash_json(made_of)[:16]

    def encode(rows: dict) -> dict:
        states, mask = encode_text(text_encoder, tokenizer, texts=rows["text"])
        return {"states": [s[m].float().cpu().numpy() for s, m in zip(states, mask, strict=True)]}

    Path(folder).mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_dict({"text": list(texts)}).map(
        encode,
        batched=True,
        batch_size=64,
        features=datasets.Features(
            {
                "text": datasets.Value("string"),
                "states": datasets.Array2D((None, text_width(text_encoder)), "float32"),
            }
        ),
        cache_file_name=str(Path(folder) / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc="Encoding texts",
    )
    row_of = {text: row for row, text in enumerate(texts)}
    dataset = dataset.with_format("torch", columns=["states"])

    def read(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        states = [dataset[row_of[text]]["states"] for text in texts]
        mask = [torch.ones(len(s), dtype=torch.bool) for s in states]
        return pad_sequence(states, batch_first=True), pad_sequence(mask, batch_first=True)

    return read


def check_captions(captions: Sequence[str | None], ids: Sequence[str]) -> None:
    """Raises a `ValueError` that names the videos without a caption, if there are such."""
    without = [id for id, caption in zip(ids, captions, strict=True) if caption is None]
    if without:
        raise ValueError(
            f"{len(without)} of {len(ids)} videos have no caption ({', '.join(without[:5])}): name the column of captions "
            "by --caption_column, and leave out the rows that have none."
        )


class TextToVideoTraining(ConditionalTraining):
    """Gives the pipeline a text encoder, unless it has one, and trains on the captions.

    Captions of a stream are encoded as they come, all others once, before the first step.

    Args:
        text: as the condition.

    Raises:
        ValueError: if there is no text encoder, a video has no caption, or the model takes text of another width.
    """

    task = "text"
    condition = "text_projection"

    def __init__(self, accelerator: Accelerator, pipe: VideoGPTPipeline, *, text: TextSettings, **training):
        scale = text.condition_guidance_scale
        super().__init__(accelerator, pipe, dropout=text.caption_dropout, guidance_scale=scale, **training)
        if text.pretrained_text_encoder_path is not None:
            text_encoder, tokenizer = load_text_encoder(text.pretrained_text_encoder_path)
            pipe.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)
        if pipe.text_encoder is None:
            raise ValueError("There is no text encoder: name one by --pretrained_text_encoder_path.")
        seed = self.feed.sampling.seed
        add_condition_tokens(pipe.transformer, seed=seed, text_embed_dim=text_width(pipe.text_encoder))
        pipe.text_encoder.to(accelerator.device)

        records = all_records(self.feed)
        check_captions([record.caption for record in records], [record.id for record in records])
        captions = sorted({record.caption for record in records})
        self.caption = next(iter(captions), "")
        if isinstance(self.feed.source, StreamSource):
            self.states = lambda texts: encode_text(pipe.text_encoder, pipe.tokenizer, texts=texts)
            return
        with accelerator.main_process_first():
            self.states = cache_texts(
                self.settings.output_dir / "texts",
                sorted({"", *captions}),
                text_encoder=pipe.text_encoder,
                tokenizer=pipe.tokenizer,
            )

    def conditions(self, batch: MicroBatch, is_training: bool) -> Conditions:
        check_captions(batch.captions, batch.ids)
        dropped = self.is_dropped(batch.generators, is_training)
        states, mask = self.states(["" if drop else x for x, drop in zip(batch.captions, dropped, strict=True)])
        return {"encoder_hidden_states": states.to(batch.latents.device), "encoder_attention_mask": mask.cpu()}

    def asked(self, sample: dict) -> dict:
        return {"prompt": sample["caption"]}
