"""Video retrieval: pooled texts against the encoders themselves, the loss against loops, also over processes, and the folder."""

import logging
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from run_scripts import TEST_FOLDERS, make_videos, run_file
from text_encoders import MAX_TOKENS, WIDTH, make_text_encoder, make_tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import normalize
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusers_videogpt import VideoGPTForVideoRetrieval, VideoGPTRetrievalPipeline
from diffusers_videogpt.conditions import encode_text
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.tasks.token_pooling import pool_clean_tokens
from diffusers_videogpt.tasks.video_retrieval import contrastive_loss, pool_text, text_feature_dim


TEXTS = ["one red ball falls", "two blue boxes bounce off the walls", "a box"]
SAMPLING = Sampling(4, frame_interval=(1, 2), height=32, width=32)


@pytest.fixture
def pipe(make_tiny_pipe) -> VideoGPTRetrievalPipeline:
    tiny = make_tiny_pipe()
    torch.manual_seed(1)
    retriever = VideoGPTForVideoRetrieval.from_transformer(tiny.transformer, WIDTH, layer=1, projection_dim=8)
    parts = (tiny.vae, retriever, make_text_encoder(), make_tokenizer())
    return VideoGPTRetrievalPipeline(*parts, asdict(SAMPLING), num_clips=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), 3, num_frames=9, height=32, width=48)


# Texts


def test_clip_is_pooled_as_it_pools_itself():
    tokenizer = make_tokenizer()
    # Not token 2, in whose place `transformers` takes the largest number, as the first CLIP models need it.
    end = ("[UNK]", 3)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"[CLS] $A {end[0]}", special_tokens=[("[CLS]", 1), end]
    )
    config = make_text_encoder("clip").config.to_dict() | {"eos_token_id": end[1]}
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(config)).eval()
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    states, mask = encode_text(text_encoder, tokenizer, texts=TEXTS)
    features = pool_text(text_encoder, states, mask=mask)
    torch.testing.assert_close(features, text_encoder(**select(tokens)).pooler_output)

    projected = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config | {"projection_dim": 6})).eval()
    states, mask = encode_text(projected, tokenizer, texts=TEXTS)
    features = pool_text(projected, states, mask=mask)
    torch.testing.assert_close(features, projected(**select(tokens)).text_embeds)
    assert features.shape == (3, text_feature_dim(projected)) == (3, 6)


def select(tokens):
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_others_are_the_mean_of_their_real_tokens(kind):
    text_encoder, tokenizer = make_text_encoder(kind), make_tokenizer()
    states, mask = encode_text(text_encoder, tokenizer, texts=TEXTS)
    features = pool_text(text_encoder, states, mask=mask)
    for text, feature in zip(TEXTS, features, strict=True):
        alone = encode_text(text_encoder, tokenizer, texts=[text])[0][0]
        torch.testing.assert_close(feature, alone.mean(0))


# The loss


def slow_loss(videos, texts, scale, captions):
    losses = []
    for i in range(len(captions)):
        others = [j for j in range(len(captions)) if j == i or captions[j] != captions[i]]
        for row, columns in ((texts[i], videos), (videos[i], texts)):
            logits = torch.stack([scale * row @ columns[j] for j in others])
            losses.append(logits.logsumexp(0) - logits[others.index(i)])
    return torch.stack(losses).mean()


def draw_embeds(num=6):
    generator = torch.Generator().manual_seed(0)
    videos, texts = (normalize(torch.randn(num, 5, generator=generator), dim=-1) for _ in range(2))
    return {"video_embeds": videos, "text_embeds": texts, "logit_scale": torch.tensor(7.0)}


@pytest.mark.parametrize("captions", [list("abcdef"), list("abacbb"), list("aaaaaa")])
def test_loss_against_loops(captions):
    embeds = draw_embeds()
    torch.testing.assert_close(contrastive_loss(**embeds, captions=captions), slow_loss(*embeds.values(), captions))


def test_mixed_precision_leaves_the_loss_alone():
    embeds = draw_embeds()
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(**embeds, captions=list("abacbb"))
    assert torch.equal(found, contrastive_loss(**embeds, captions=list("abacbb")))


def train_step(rows: slice):
    """Loss of a small model on some of six videos and texts; gradients of its weights."""
    generator = torch.Generator().manual_seed(0)
    features, texts = torch.randn(6, 5, generator=generator), torch.randn(6, 4, generator=generator)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"video": torch.nn.Linear(5, 3), "text": torch.nn.Linear(4, 3)})
    model.scale = torch.nn.Parameter(torch.tensor(5.0))
    embeds = (normalize(model[name](x[rows]), dim=-1) for name, x in (("video", features), ("text", texts)))
    loss = contrastive_loss(*embeds, logit_scale=model.scale, captions=list("abcabd")[rows])
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def in_two_processes(folder):
    accelerator = Accelerator()
    rank = accelerator.process_index
    loss, gradients = train_step(slice(3 * rank, 3 * rank + 3))
    mean = [accelerator.reduce(gradient, "mean") for gradient in gradients]  # what data parallelism does
    torch.save([loss, mean], Path(folder) / f"{rank}.pt")


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    run_file(__file__, tmp_path, num_processes=2, path=TEST_FOLDERS)
    loss, gradients = train_step(slice(None))
    for rank in range(2):
        found_loss, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found_loss, loss)
        torch.testing.assert_close(found, gradients)
    # Without the others' videos it would be another loss.
    assert abs(train_step(slice(0, 3))[0] - loss) > 1e-2


# The model


def test_features_are_those_of_the_whole_transformer(tiny_transformer):
    model = VideoGPTForVideoRetrieval.from_transformer(tiny_transformer, 7, layer=1, projection_dim=8)
    latents = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    features = pool_clean_tokens(tiny_transformer, latents, layer=1)
    with torch.no_grad():
        by_latents, by_features = (model(**given)[0] for given in ({"latents": latents}, {"video_features": features}))
    torch.testing.assert_close(by_latents, by_features)
    torch.testing.assert_close(by_latents.norm(dim=-1), torch.ones(2))
    assert len(model.transformer.transformer_blocks) == 1


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_every_trained_weight_has_a_gradient(tiny_transformer, pooling):
    model = VideoGPTForVideoRetrieval.from_transformer(tiny_transformer, 7, projection_dim=8, pooling=pooling)
    generator = torch.Generator().manual_seed(0)
    latents, texts = torch.randn(2, 4, 3, 4, 4, generator=generator), torch.randn(2, 7, generator=generator)
    *embeds, logit_scale = model(latents=latents, text_features=texts)
    contrastive_loss(*embeds, logit_scale=logit_scale, captions=["a", "b"]).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in trained.values())
    assert {name.split(".")[0] for name in trained} == {
        *("transformer", "video_projection", "text_projection", "logit_scale")
    }


def test_temperature_is_bounded(tiny_transformer):
    model = VideoGPTForVideoRetrieval.from_transformer(tiny_transformer, 7, projection_dim=8)
    assert model()[2].item() == pytest.approx(1 / 0.07)
    model.logit_scale.data.fill_(50.0)
    assert model()[2].item() == pytest.approx(100)


@torch.no_grad()
def test_model_of_a_conditional_transformer_in_bf16(make_tiny_transformer):
    """Without its conditions, in its precision, ready for use; the vectors are in fp32."""
    transformer = make_tiny_transformer(num_classes=3, text_embed_dim=6).to(torch.bfloat16)
    model = VideoGPTForVideoRetrieval.from_transformer(transformer, 5, projection_dim=8)
    config = model.transformer.config
    assert config.num_classes is None and config.text_embed_dim is None
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for vectors in model(torch.ones(2, 4, 2, 4, 4), text_features=torch.arange(10.0).view(2, 5) ** 2)[:2]:
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2), atol=1e-2, rtol=0)


def test_text_of_another_width_and_no_block(tiny_transformer, make_tiny_pipe):
    model = VideoGPTForVideoRetrieval.from_transformer(tiny_transformer, 7)
    with pytest.raises(ValueError, match="5 wide, this model takes 7"):
        model(text_features=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="no block"):
        VideoGPTForVideoRetrieval.from_transformer(tiny_transformer, 7, layer=0)
    with pytest.raises(ValueError, match=f"CLIPTextModel gives text features {WIDTH} wide, the retriever takes 7"):
        VideoGPTRetrievalPipeline(make_tiny_pipe().vae, model, make_text_encoder(), make_tokenizer())


# The pipeline


def test_folder_is_all_that_use_takes(tmp_path, pipe, folder, caplog):
    videos = sorted(folder.iterdir())
    expected = pipe(TEXTS, videos)
    assert expected.shape == (3, 3) and expected.abs().max() <= 1 + 1e-6
    pipe.save_pretrained(tmp_path)
    logging.getLogger("diffusers").propagate = True
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert "type annotation" not in caplog.text and "Expected types" not in caplog.text
    assert type(loaded) is VideoGPTRetrievalPipeline and loaded.sampling == SAMPLING
    torch.testing.assert_close(loaded(TEXTS, videos), expected)
    retriever = VideoGPTForVideoRetrieval.from_pretrained(tmp_path, subfolder="retriever")
    assert retriever.config.projection_dim == 8
    index = (tmp_path / "model_index.json").read_text()
    assert '"diffusers_videogpt",\n    "VideoGPTForVideoRetrieval"' in index


def test_video_is_the_mean_of_its_clips(pipe):
    video = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    from diffusers_videogpt.tasks.video_features import clip_latents, clips_of

    clips = clips_of(video, SAMPLING, num_clips=2)
    alone = torch.stack([pipe.encode_clips(clip_latents(pipe.vae, clip[None])) for clip in clips])
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)
    torch.testing.assert_close(pipe.encode_videos([video])[0], normalize(alone.mean(0), dim=-1))


def test_bad_input(pipe, folder, tmp_path, caplog):
    for texts in ("", " ", [], ["a box", ""], [3]):
        with pytest.raises(ValueError, match="at least one text, and none that is empty"):
            pipe.encode_texts(texts)
    with pytest.raises(ValueError, match="at least one"):
        pipe.encode_videos([])
    short = make_videos(tmp_path, 1, num_frames=3) / "32x32-0.mp4"
    with pytest.raises(ValueError, match="32x32-0.mp4 is too short: 3 frames"):
        pipe.encode_videos([short])
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no.mp4 is unreadable"):
        pipe.encode_videos([tmp_path / "no.mp4"])

    logging.getLogger("diffusers_videogpt").propagate = True
    room = MAX_TOKENS - 2
    words = ["one", "red", "ball", "and", "two", "blue", "boxes", "and", "a", "green", "box", "fall"]
    with caplog.at_level(logging.WARNING):
        long = pipe.encode_texts(" ".join(words))
    assert f"cut off: '{' '.join(words[room:])}'" in caplog.text
    torch.testing.assert_close(long, pipe.encode_texts(" ".join(words[:room])))


if __name__ == "__main__":
    in_two_processes(sys.argv[1])
