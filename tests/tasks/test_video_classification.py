"""The classifier: a part of a transformer and a head; saved and loaded as diffusers does; what it says of videos."""

import numpy as np
import pytest
import torch
from diffusers import AutoModel
from run_scripts import make_videos

from diffusers_videogpt import VideoGPTForVideoClassification
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.tasks.token_pooling import pool_clean_tokens
from diffusers_videogpt.tasks.trunk import UNUSED_PARTS
from diffusers_videogpt.tasks.video_classification import classify_videos
from diffusers_videogpt.tasks.video_features import clip_latents, clips_of


NAMES = ["run", "jump", "swim"]
SAMPLING = Sampling(4, frame_interval=(1, 2), height=32, width=32)


@pytest.fixture
def latents():
    return torch.randn(2, 4, 5, 4, 6, generator=torch.Generator().manual_seed(1))


def make_classifier(transformer, **settings) -> VideoGPTForVideoClassification:
    model = VideoGPTForVideoClassification.from_transformer(transformer, NAMES, **{"layer": 1} | settings)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    return model


def test_head_on_pooled_tokens(make_tiny_transformer, latents):
    """One layer of two; class and text tokens of the transformer are left out."""
    transformer = make_tiny_transformer(num_classes=5, text_embed_dim=8)
    model = make_classifier(transformer, pooling="thirds")
    assert len(model.transformer.transformer_blocks) == 1 and model.transformer.class_embed is None
    labels = torch.tensor([2, 0])
    output = model(latents, labels)
    features = pool_clean_tokens(transformer, latents, layer=1, pooling="thirds")
    features = (features - features.mean(1, keepdim=True)) / (
        features.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    expected = torch.nn.functional.linear(features, model.head.weight, model.head.bias)
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.loss, -expected.log_softmax(1)[[0, 1], labels].mean())
    assert model(latents).loss is None and len(model(latents, labels, return_dict=False)) == 2


def test_what_is_trained(tiny_transformer, latents):
    """Everything that may have a gradient gets one: data parallelism needs that."""
    model = make_classifier(tiny_transformer, layer=2).train()
    model.enable_gradient_checkpointing()
    model(latents, torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        is_used = name.split(".")[1] not in UNUSED_PARTS
        assert parameter.requires_grad == is_used == (parameter.grad is not None), name


@torch.no_grad()
@pytest.mark.parametrize("loader", [VideoGPTForVideoClassification, AutoModel])
def test_saved_and_loaded(tiny_transformer, latents, tmp_path, loader):
    names = [f"class {number}" for number in range(12)]  # the order is that of numbers, not of their digits
    model = VideoGPTForVideoClassification.from_transformer(
        tiny_transformer, names, layer=-1, pooling="mean_std", sampling=SAMPLING
    )
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(str(tmp_path))
    assert isinstance(loaded, VideoGPTForVideoClassification) and not loaded.training
    assert torch.equal(loaded(latents).logits, model(latents).logits)
    assert list(loaded.labels.items()) == [(name, number) for number, name in enumerate(names)]
    assert loaded.sampling == SAMPLING
    half = loader.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    torch.testing.assert_close(half(latents).logits, model(latents).logits, atol=0.3, rtol=0.1)


def test_bad_input(tiny_transformer, latents):
    model = make_classifier(tiny_transformer)
    with pytest.raises(ValueError, match=r"Labels of 3 classes are numbers in 0\.\.2, got \[0, 3\]"):
        model(latents, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="has the classes run, jump, swim, not fly"):
        model.label_ids(["run", "fly"])
    with pytest.raises(ValueError, match=r"does not say how clips are taken: pass `sampling`"):
        classify_videos(model, None, videos=np.zeros((8, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="at least two classes of different names, got"):
        VideoGPTForVideoClassification.from_transformer(tiny_transformer, ["run"])
    with pytest.raises(ValueError, match="`layer`=0 leaves no block"):
        make_classifier(tiny_transformer, layer=0)
    with pytest.raises(ValueError, match="`layer`=3 of a model with 2 layers"):
        make_classifier(tiny_transformer, layer=3)


@torch.no_grad()
def test_classes_of_videos(make_tiny_pipe, tmp_path):
    """The mean of the clips' probabilities, from a file and from its frames."""
    pipe = make_tiny_pipe()
    model = make_classifier(pipe.transformer, sampling=SAMPLING)
    path = next(make_videos(tmp_path, 1, num_frames=9).iterdir())
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    of_file, of_frames = classify_videos(model, pipe.vae, videos=[path, frames], num_clips=2, top_k=2)
    assert of_file == classify_videos(model, pipe.vae, videos=str(path), num_clips=2, top_k=2)[0]
    clips = clip_latents(pipe.vae, clips_of(frames, SAMPLING, num_clips=2))
    expected = model(clips).logits.softmax(-1).mean(0)
    assert [name for name, _ in of_frames] == [NAMES[i] for i in expected.argsort(descending=True)[:2]]
    assert [p for _, p in of_frames] == pytest.approx(expected.sort(descending=True).values[:2].tolist())
    with pytest.raises(ValueError, match="A video of 3 frames is too short"):
        classify_videos(model, pipe.vae, videos=frames[:3])
