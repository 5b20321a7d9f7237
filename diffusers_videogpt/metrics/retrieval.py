"""How well texts find their videos, and videos their texts: R@1, R@5, R@10 and the median rank.

    scores = score_both_ways(video_embeds, text_embeds, captions=captions, texts=texts)
    print(format_retrieval(scores))

Shapes: Q queries, C candidates, T distinct texts, V videos, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


CUTOFFS = (1, 5, 10)


@dataclass
class RetrievalScores:
    """What the order of the candidates is worth, over Q queries.

    Attributes:
        recall: k → share of the queries with a right candidate among the k best.
        median_rank: of the best right candidate; 1 is the best.
        chance: what R@1 would be if the order were random.
        num_queries, num_candidates: Q and C.
    """

    recall: dict[int, float]
    median_rank: float
    chance: float
    num_queries: int
    num_candidates: int


def rank_candidates(similarity: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """The rank of each query's best right candidate, from 1 on: (Q,).

    A wrong candidate that is as similar as the right one counts as better: a model that cannot tell them apart gets the
    worst rank, whatever the order in which they come. Other right candidates do not count.

    Args:
        similarity: (Q, C), larger is nearer.
        is_right: boolean (Q, C).

    Raises:
        ValueError: if a query has no right candidate, or a similarity is not finite.
    """
    if not is_right.any(axis=1).all():
        raise ValueError(f"Query {np.flatnonzero(~is_right.any(axis=1))[0]} has no right candidate.")
    if not np.isfinite(similarity).all():
        raise ValueError("Some similarities are NaN or infinite: the model's features are broken.")
    best_right = np.where(is_right, similarity, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~is_right & (similarity >= best_right)).sum(axis=1)


def score_retrieval(similarity: np.ndarray, is_right: np.ndarray) -> RetrievalScores:
    """Scores of one way, with the arguments of [`rank_candidates`]."""
    ranks = rank_candidates(similarity, is_right)
    return RetrievalScores(
        recall={k: float((ranks <= k).mean()) for k in CUTOFFS},
        median_rank=float(np.median(ranks)),
        chance=float(is_right.mean()),
        num_queries=is_right.shape[0],
        num_candidates=is_right.shape[1],
    )


def score_both_ways(
    video_embeds: np.ndarray, text_embeds: np.ndarray, *, captions: Sequence[str], texts: Sequence[str]
) -> dict[str, RetrievalScores]:
    """Text → video and video → text.

    A text is asked once, however many videos have it as their caption: all of these are right.

    Args:
        video_embeds: (V, D) unit vectors.
        text_embeds: (T, D) unit vectors.
        captions: of the V videos.
        texts: the T distinct captions.
    """
    # Rounded, so that equal vectors tie whatever the order of their sums.
    similarity = np.round(text_embeds.astype(np.float64) @ video_embeds.astype(np.float64).T, 9)
    is_right = np.array(texts)[:, None] == np.array(captions)[None]
    return {
        "text → video": score_retrieval(similarity, is_right),
        "video → text": score_retrieval(similarity.T, is_right.T),
    }


def format_retrieval(scores: dict[str, RetrievalScores]) -> str:
    """The scores as a Markdown table."""
    lines = ["| | " + " | ".join(f"R@{k}" for k in CUTOFFS) + " | median rank | chance of R@1 |"]
    lines.append("|---" * (3 + len(CUTOFFS)) + "|")
    for name, way in scores.items():
        recalls = " | ".join(f"{100 * way.recall[k]:.1f} %" for k in CUTOFFS)
        sizes = f"{way.num_queries} in {way.num_candidates}"
        lines.append(f"| {name} ({sizes}) | {recalls} | {way.median_rank:g} | {100 * way.chance:.1f} % |")
    return "\n".join(lines)
