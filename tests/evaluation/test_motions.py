"""The scores of animated first frames: known where the right answer is, and adapters mixed leave the pipeline as it was."""

import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict

from diffusers_videogpt import VideoGPTPipeline
from diffusers_videogpt.evaluation.condition_following import classify, train_classifier
from diffusers_videogpt.evaluation.motions import (
    CLASSES,
    MIXTURES,
    evaluate_motion,
    format_motion_scores,
    mix_adapters,
    other_videos,
    score_motion,
)
from diffusers_videogpt.worlds.motions import MOTIONS, motion_set


@pytest.fixture(scope="module")
def classifier():
    """Of the true videos, without an autoencoder; it sees no held-out colour or place."""
    rows = [[x.frames for x in motion_set(motion, 20, num_frames=8, size=32)] for motion in MOTIONS]
    rows.append(other_videos(20, num_frames=8, size=32))
    labels = np.repeat(np.arange(len(CLASSES)), 20).tolist()
    videos = np.stack([video for row in rows for video in row])
    return train_classifier(videos, labels, num_classes=len(CLASSES), num_epochs=20)


def test_truth_is_recognised_and_a_still_is_not(classifier):
    for motion in MOTIONS:
        animations = list(motion_set(motion, 6, held_out=True, num_frames=8, size=32))
        truth = score_motion(animations, [x.frames for x in animations], classifier=classifier)
        still = score_motion(
            animations, [np.repeat(x.frames[:1], 8, axis=0) for x in animations], classifier=classifier
        )
        assert truth.recognised > 0.8 and (truth.others_unchanged, truth.error) == (1, 0)
        assert still.recognised < 0.2 and still.others_unchanged == 1 and still.error > 0.005
    found = classify(classifier, other_videos(12, num_frames=8, size=32))
    assert np.mean([CLASSES[x] == "other" for x in found]) > 0.6


def test_objects_that_moved_and_the_error_are_told(classifier):
    animations = list(motion_set("transform", 4, held_out=True, num_frames=8, size=64))
    videos = [x.frames.copy() for x in animations]
    videos[0][-1] = np.roll(videos[0][-1], 5, axis=0)
    scores = score_motion(animations, videos, classifier=classifier)
    assert scores.others_unchanged == 0.75
    difference = (videos[0][-1] / 255 - animations[0].frames[-1] / 255) ** 2
    assert scores.error == pytest.approx(difference.mean() / (7 * 4))


def save_lora(pipe, folder, seed):
    torch.manual_seed(seed)
    network = pipe.transformer
    network.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = {name: 2 * tensor for name, tensor in get_peft_model_state_dict(network).items()}
    VideoGPTPipeline.save_lora_weights(
        folder, layers, transformer_lora_adapter_metadata=network.peft_config["default"].to_dict()
    )
    network.delete_adapters("default")
    pipe.unload_lora_weights()
    return folder


def test_an_adapter_is_scored_beside_its_base(make_tiny_pipe, classifier, tmp_path):
    pipe = make_tiny_pipe(max_context_frames=8)
    lora = save_lora(pipe, tmp_path / "lora", seed=0)
    weights = {name: x.clone() for name, x in pipe.transformer.state_dict().items()}
    scores = evaluate_motion(
        pipe,
        lora,
        motion="fly_off",
        classifier=classifier,
        num_animations=2,
        num_frames=4,
        num_inference_steps=1,
        all_weights=make_tiny_pipe(max_context_frames=8, frames_per_clip=3),
        folder=tmp_path,
    )
    ways = ["still", "base", "LoRA", "all weights", "truth"]
    assert list(scores) == ["all", "colour", "place"] and list(scores["all"]) == ways
    assert scores["all"]["LoRA"].error != scores["all"]["all weights"].error
    assert scores["all"]["LoRA"].error != scores["all"]["base"].error
    mean = np.mean([scores[novelty]["base"].error for novelty in ("colour", "place")])
    assert scores["all"]["base"].error == pytest.approx(mean)
    after = pipe.transformer.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    assert (tmp_path / "fly_off.png").is_file()

    known = {
        "still": dataclasses.replace(scores["all"]["still"], error=0.02),
        "base": dataclasses.replace(scores["all"]["base"], error=0.04),
        "LoRA": dataclasses.replace(scores["all"]["LoRA"], error=0.01, recognised=0.9, others_unchanged=1.0),
    }
    assert "| all | LoRA | 90% | 100% | 10.00 | 0.50 × | 0.25 × |" in format_motion_scores({"all": known})


def test_two_adapters_are_mixed_fused_and_unloaded(make_tiny_pipe, tmp_path):
    pipe = make_tiny_pipe(max_context_frames=8)
    loras = {name: save_lora(pipe, tmp_path / name, seed) for seed, name in enumerate(("lie_down", "fly_off"))}
    picture = np.full((32, 32, 3), 90, np.uint8)
    videos, differences = mix_adapters(pipe, loras, frame=picture, num_frames=3, num_inference_steps=2)
    assert list(videos)[:4] == ["base", "1 lie_down", "0.7 lie_down + 0.3 fly_off", "0.5 lie_down + 0.5 fly_off"]
    assert len(videos) == 1 + len(MIXTURES) + 3
    assert differences["unloaded"] == 0 and differences["fused"] <= 2
    distinct = {video.tobytes() for name, video in videos.items() if name not in ("unloaded", "both, fused")}
    assert len(distinct) == 1 + len(MIXTURES)  # at half scale both are the mixture at half their weights
    assert all(video.shape == (3, 32, 32, 3) and (video[0] == 90).all() for video in videos.values())
    assert np.array_equal(videos["both, scale 0.5"], videos["0.5 lie_down + 0.5 fly_off"])
    with pytest.raises(ValueError, match="Two adapters are mixed, got 1: fly_off"):
        mix_adapters(pipe, {"fly_off": loras["fly_off"]}, frame=picture)
