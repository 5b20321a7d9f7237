"""Small random text encoders, with a tokenizer of a few words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)


WIDTH, MAX_TOKENS = 12, 12
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = "a and one two three red green blue yellow magenta cyan ball balls box boxes fall falls bounce bounces off the walls"


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **names)


def make_text_encoder(kind: str = "clip") -> torch.nn.Module:
    torch.manual_seed(0)
    vocab_size = len(SPECIAL) + len(WORDS.split())
    sizes = {"vocab_size": vocab_size, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": MAX_TOKENS}
    if kind == "clip":
        model = CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    elif kind == "bert":
        model = BertModel(BertConfig(**sizes))
    else:
        model = T5Model(T5Config(vocab_size=vocab_size, d_model=WIDTH, d_kv=6, d_ff=16, num_layers=1, num_heads=2))
    return model.eval()
