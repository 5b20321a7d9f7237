"""What is scored, and that videos are paired with their own texts."""

import pytest
import torch

from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.evaluation import retrieval
from diffusers_videogpt.evaluation.retrieval import (
    captioned_videos,
    distinct_scenes,
    evaluate_retrieval,
)


SAMPLING = Sampling(8, frame_interval=(2, 2), height=32, width=32)


def test_scenes_have_captions_of_their_own_and_seeds_of_evaluation(monkeypatch):
    table = distinct_scenes(30, SAMPLING)
    assert len({record.caption for record in table}) == len(table) == 30
    seeds = [record.source.seed for record in table]
    assert seeds == sorted(seeds) and seeds[-1] < 10_000
    monkeypatch.setattr(retrieval, "NUM_EVALUATION_SEEDS", 40)
    with pytest.raises(ValueError, match="evaluation scenes of 'orders' have captions of their own: ask for fewer"):
        distinct_scenes(41, SAMPLING, world="orders")


def test_what_is_scored_is_named_once_and_has_captions(tmp_path):
    with pytest.raises(ValueError, match="--simulated"):
        captioned_videos(SAMPLING)
    (tmp_path / "rows.csv").write_text("video\nnone.mp4\n")
    with pytest.raises(ValueError, match="no column 'caption'"):
        captioned_videos(SAMPLING, tmp_path / "rows.csv")


@pytest.mark.parametrize("shift, expected", [(0, 1.0), (1, 0.0)])
def test_evaluation_pairs_videos_with_their_own_texts(shift, expected):
    table = distinct_scenes(4, SAMPLING)
    vectors = torch.eye(4)
    texts = sorted(record.caption for record in table)

    class Known:
        def encode_table(self, table):
            for index, record in enumerate(table):
                yield index, vectors[texts.index(record.caption)]

        def encode_texts(self, asked):
            return vectors[[(texts.index(text) + shift) % 4 for text in asked]]

    scores = evaluate_retrieval(Known(), table)
    assert [way.recall[1] for way in scores.values()] == [expected, expected]
