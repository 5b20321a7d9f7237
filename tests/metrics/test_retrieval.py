"""Ranks counted by hand, ties and repeated captions."""

import numpy as np
import pytest

from diffusers_videogpt.metrics.retrieval import (
    format_retrieval,
    rank_candidates,
    score_both_ways,
    score_retrieval,
)


def test_ranks_recall_and_median_counted_by_hand():
    similarity = np.array([[0.9, 0.5, 0.1], [0.3, 0.2, 0.8], [0.5, 0.4, 0.6], [0.9, 0.1, 0.2]])
    is_right = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], bool)
    assert rank_candidates(similarity, is_right).tolist() == [1, 3, 1, 2]
    scores = score_retrieval(similarity, is_right)
    assert scores.recall == {1: 0.5, 5: 1.0, 10: 1.0}
    assert (scores.median_rank, scores.chance) == (1.5, pytest.approx(1 / 3))
    assert (scores.num_queries, scores.num_candidates) == (4, 3)


def test_ties_count_against_the_model_in_any_order():
    is_right = np.eye(5, dtype=bool)
    assert rank_candidates(np.zeros((5, 5)), is_right).tolist() == [5] * 5
    similarity = np.array([[0.5, 0.5, 0.1]])
    for order in ([0, 1, 2], [1, 0, 2]):
        right = np.array([[True, False, False]])[:, order]
        assert rank_candidates(similarity[:, order], right).tolist() == [2]


def test_equal_similarities_tie_though_sums_are_rounded():
    """The videos' vectors are one vector in other orders, so that the sums, over equal texts, are rounded otherwise."""
    rng = np.random.default_rng(0)
    texts = np.full((7, 256), 1 / 16)
    videos = rng.permuted(np.repeat(rng.normal(size=(1, 256)) / 16, 7, axis=0), axis=1)
    names = list("abcdefg")
    assert score_both_ways(videos, texts, captions=names, texts=names)["text → video"].median_rank == 7


def test_videos_of_one_caption_are_all_right_and_it_is_asked_once():
    videos = np.eye(3)[[0, 0, 1, 2]]
    texts = np.eye(3)
    captions, distinct = ["a", "a", "b", "c"], ["a", "b", "c"]
    scores = score_both_ways(videos, texts, captions=captions, texts=distinct)
    assert [way.recall[1] for way in scores.values()] == [1.0, 1.0]
    assert [(way.num_queries, way.num_candidates) for way in scores.values()] == [(3, 4), (4, 3)]
    assert scores["text → video"].chance == pytest.approx((2 + 1 + 1) / 12)
    swapped = score_both_ways(videos, texts[[1, 0, 2]], captions=captions, texts=distinct)
    assert swapped["text → video"].recall[1] == pytest.approx(1 / 3)
    assert swapped["video → text"].recall[1] == pytest.approx(1 / 4)
    assert "| text → video (3 in 4) | 100.0 % | 100.0 % | 100.0 % | 1 | 33.3 % |" in format_retrieval(scores)


def test_broken_features_and_queries_without_an_answer():
    with pytest.raises(ValueError, match="Query 1 has no right candidate"):
        rank_candidates(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="NaN"):
        rank_candidates(np.full((1, 1), np.nan), np.ones((1, 1), bool))
