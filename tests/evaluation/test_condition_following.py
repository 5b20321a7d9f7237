"""What is read from videos against what is known to be in them; a classifier against two motions that it can tell apart."""

import numpy as np
import pytest
from text_encoders import WIDTH, make_text_encoder, make_tokenizer
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.evaluation.condition_following import (
    classify,
    evaluate_classes,
    evaluate_prompts,
    format_classes,
    format_prompts,
    generate,
    score_objects,
    train_classifier,
)
from diffusers_videogpt.worlds import SCENE_KINDS, Group, Order


@pytest.fixture
def pipe(make_tiny_transformer):
    pipe = VideoGPTPipeline(
        tiny_autoencoder_of(),
        make_tiny_transformer(num_classes=5, text_embed_dim=WIDTH),
        NextClipFlowMatchScheduler(),
        frames_per_clip=4,
        longest_side=32,
        id2label=dict(enumerate(SCENE_KINDS)),
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_objects_of_videos():
    """Two videos as ordered; then one of another colour, one too few, one of another shape."""
    orders = [
        Order("fall", (Group(2, "red", "ball"),)),
        Order("bounce", (Group(1, "blue", "box"), Group(1, "cyan", "ball"))),
    ]
    videos = [order.simulate(seed, num_frames=4).frames for seed, order in enumerate(orders)]
    assert score_objects(orders, videos).everything == 1
    wrong = [(Group(2, "green", "ball"),), (Group(1, "red", "ball"),), (Group(2, "red", "box"),)]
    videos = [Order("fall", groups).simulate(0, num_frames=4).frames for groups in wrong]
    scores = score_objects([orders[0]] * 3, videos)
    assert (scores.colours, scores.numbers, scores.shapes) == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    assert (scores.count, scores.everything) == (3, 0)


def test_classifier_tells_motions_apart():
    rng = np.random.default_rng(0)
    videos, labels = np.zeros((150, 4, 16, 16, 3), np.uint8), rng.integers(0, 2, 150)
    for video, label in zip(videos, labels, strict=True):
        row, column = rng.integers(0, 9, 2)
        for t, frame in enumerate(video):
            down, right = (t, 0) if label else (0, t)
            frame[row + down : row + down + 4, column + right : column + right + 4] = 255
    classifier = train_classifier(videos[:100], labels[:100], num_classes=2, num_epochs=15, batch_size=10)
    assert np.mean(classify(classifier, videos[100:]) == labels[100:]) > 0.9


def test_generated_videos_do_not_depend_on_the_batch(pipe):
    prompts = ["one red ball falls", "two blue boxes and one red ball fall", "a box"]
    settings = {"num_inference_steps": 2, "condition_guidance_scale": 2.0, "seed": 0}
    together = generate(pipe, 3, **settings, prompt=prompts)
    alone = generate(pipe, 3, **settings, batch_size=1, prompt=prompts)
    assert together[0].shape == (4, 32, 32, 3)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])


def test_classes_end_to_end(pipe, tmp_path):
    scores = evaluate_classes(pipe, 2, num_training_videos=6, num_inference_steps=1, folder=tmp_path)
    assert [sum(row) for row in scores.confusion] == [2] * 5 and sum(scores.without) == 10
    assert scores.made == sum(scores.confusion[i][i] for i in range(5)) / 10
    assert format_classes(scores).splitlines()[2].startswith("| bounce |")
    for name, count in (("made", 10), ("real", 10), ("without_label", 10)):
        assert len(list((tmp_path / name).rglob("*.mp4"))) == count
    assert (tmp_path / "classes.png").exists()
    pipe.register_to_config(id2label={0: "bounce", 1: "../fall", 2: "pendulum", 3: "ramp", 4: "stack"})
    with pytest.raises(ValueError, match=r"'\.\./fall' leads out of the folder"):
        evaluate_classes(pipe, folder=tmp_path)
    pipe.register_to_config(id2label=None)
    with pytest.raises(ValueError, match="names no classes"):
        evaluate_classes(pipe)


def test_prompts_end_to_end(pipe, tmp_path):
    results = evaluate_prompts(pipe, 2, num_inference_steps=1, folder=tmp_path)
    assert len(results) == 4 and all(scores.count == 2 for scores in results.values())
    assert len(format_prompts(results).splitlines()) == 6
    assert len((tmp_path / "held_out" / "prompts.txt").read_text().splitlines()) == 2
    assert (tmp_path / "seen" / "prompts.png").exists()
