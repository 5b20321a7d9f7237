"""Text encoders from folders and pipelines, and the cache of texts against the encoder itself."""

import torch
from text_encoders import WIDTH, make_text_encoder, make_tokenizer

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.conditions import encode_text
from diffusers_videogpt.tasks.text_to_video import cache_texts, load_text_encoder


TEXTS = ["", "one red ball falls", "two blue boxes bounce off the walls"]


def test_encoder_by_itself_and_of_a_pipeline(tmp_path, make_tiny_transformer):
    text_encoder, tokenizer = make_text_encoder("bert"), make_tokenizer()
    text_encoder.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    transformer = make_tiny_transformer(text_embed_dim=WIDTH)
    pipe = VideoGPTPipeline(
        None, transformer, NextClipFlowMatchScheduler(), text_encoder=text_encoder, tokenizer=tokenizer
    )
    pipe.save_pretrained(tmp_path / "pipe")
    expected = encode_text(text_encoder, tokenizer, texts=TEXTS)[0]
    for name in ("bert", "pipe"):
        loaded = load_text_encoder(str(tmp_path / name))
        torch.testing.assert_close(encode_text(*loaded, texts=TEXTS)[0], expected)
        assert not any(p.requires_grad for p in loaded[0].parameters())


def test_cache_is_the_encoder(tmp_path):
    text_encoder, tokenizer = make_text_encoder(), make_tokenizer()
    read = cache_texts(tmp_path, TEXTS, text_encoder=text_encoder, tokenizer=tokenizer)
    expected, expected_mask = encode_text(text_encoder, tokenizer, texts=[TEXTS[2], TEXTS[0]])
    states, mask = read([TEXTS[2], TEXTS[0]])
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(states[mask], expected[mask])
    assert not states[~mask].any()


def test_cache_is_written_once_and_anew_for_another_encoder(tmp_path):
    text_encoder, tokenizer = make_text_encoder(), make_tokenizer()
    calls = []
    text_encoder.register_forward_hook(lambda *_: calls.append(1))
    states = [cache_texts(tmp_path, TEXTS, text_encoder=text_encoder, tokenizer=tokenizer)(TEXTS)[0] for _ in range(2)]
    assert len(calls) == 1 and torch.equal(*states)
    next(text_encoder.parameters()).data += 1
    changed = cache_texts(tmp_path, TEXTS, text_encoder=text_encoder, tokenizer=tokenizer)(TEXTS)[0]
    assert len(calls) == 2 and not torch.allclose(changed, states[0])
    assert len(list(tmp_path.glob("*.arrow"))) == 2
