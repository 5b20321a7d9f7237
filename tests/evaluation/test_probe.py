"""Scores by hand; the comparison of features at toy size; the command."""

import csv
import json

import pytest
import torch
from run_scripts import make_videos

from diffusers_videogpt import VideoGPTForVideoClassification
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.evaluation.probe import (
    compare_features,
    evaluate_classifier,
    format_features,
    write_features,
    write_scores,
)
from diffusers_videogpt.metrics.classification import ClassificationScores
from diffusers_videogpt.tasks.video_classification import classify_videos


SAMPLING = Sampling(4, height=32, width=32)


def test_scores_as_files(tmp_path):
    """A class whose name a spreadsheet would take for a formula stays text."""
    names = ["run", "=1+1", "-jump", "@swim"]
    scores = ClassificationScores(names, 0.5, 1.0, [[2, 1, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    write_scores(scores, tmp_path / "out")
    with (tmp_path / "out" / "confusion.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true class", "run", "'=1+1", "'-jump", "'@swim"]
    assert rows[1] == ["run", "2", "1", "0", "0"] and [row[0] for row in rows[1:]] == rows[0][1:]
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["confusion"] == scores.confusion and found["names"] == names
    assert (tmp_path / "out" / "confusion.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def classifier(make_tiny_transformer):
    model = VideoGPTForVideoClassification.from_transformer(
        make_tiny_transformer(), ["run", "swim"], layer=1, sampling=SAMPLING
    )
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


def test_command_on_videos(tmp_path, classifier, make_tiny_pipe, capsys):
    """A folder a class, and a list as UCF-101's, against one video at a time."""
    vae, root = make_tiny_pipe().vae, tmp_path / "videos"
    for seed, name in enumerate(("run", "swim")):
        make_videos(root / name, 3, seed=seed)
    classifier.save_pretrained(tmp_path / "model")
    vae.save_pretrained(tmp_path / "model" / "vae")
    paths = sorted(root.rglob("*.mp4"))
    right = [
        best[0][0] == path.parent.name
        for path, best in zip(paths, classify_videos(classifier, vae, videos=paths, num_clips=2), strict=True)
    ]
    (tmp_path / "testlist01.txt").write_text("".join(f"{p.relative_to(root).as_posix()}\n" for p in paths[:4]))
    arguments = ["evaluate", "probe", "--model", str(tmp_path / "model"), "--data", str(root), "--num-clips", "2"]
    for more, expected in (([], right), (["--dataset-file", str(tmp_path / "testlist01.txt")], right[:4])):
        main([*arguments, *more, "--device", "cpu", "--output", str(tmp_path / "out")])
        printed = capsys.readouterr().out
        assert f"{len(expected)} videos; 0 of {len(expected)} videos dropped" in printed
        assert f"top-1: {100 * sum(expected) / len(expected):.2f} %" in printed
        assert sum(map(sum, json.loads((tmp_path / "out" / "scores.json").read_text())["confusion"])) == len(expected)

    with pytest.raises(SystemExit, match="give --model and --data, or --simulated"):
        main(["evaluate", "probe"])


def test_classes_that_the_model_does_not_know(tmp_path, classifier, make_tiny_pipe):
    make_videos(tmp_path / "fly", 1)
    with pytest.raises(ValueError, match="has the classes run, swim, not fly"):
        evaluate_classifier(classifier, make_tiny_pipe().vae, table=VideoTable.from_folder(tmp_path, SAMPLING))


def test_features_compared(tmp_path, make_tiny_pipe):
    """Every kind of features gets one chosen layer a question, the best on scenes kept from training."""
    results = compare_features(make_tiny_pipe(), num_training=24, num_test=10, layers=[1, 2])
    assert list(results) == ["kind of scene", "number of objects"]
    for probes in results.values():
        assert [(p.features, p.layer) for p in probes] == [
            ("this model", 1),
            ("this model", 2),
            ("random weights", 1),
            ("random weights", 2),
            ("latents, mean over frames and pixels", None),
            ("latents, mean over frames", None),
        ]
        for first in (0, 2):
            pair = probes[first : first + 2]
            assert sorted(p.chosen for p in pair) == [False, True]
            assert next(p for p in pair if p.chosen).held_out == max(p.held_out for p in pair)
        assert all(sum(map(sum, p.scores.confusion)) == 10 and p.test == p.scores.top1 for p in probes)
    table = format_features(results)
    assert table.count("\n") == 7 and table.count("**") == 16 and "| random weights | 2 |" in table
    write_features(results, tmp_path)
    assert (tmp_path / "kind_of_scene" / "confusion.png").exists()
    assert len(json.loads((tmp_path / "features.json").read_text())["number of objects"]) == 6
