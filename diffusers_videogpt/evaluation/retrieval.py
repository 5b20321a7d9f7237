"""How well texts find their videos, and videos their texts: R@1, R@5, R@10 and the median rank.

Shapes: Q queries, C candidates, T distinct texts, V videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.sampling import Sampling
from ..data.videos import DroppedVideos, SimulatedScene, VideoTable
from ..tasks.text_to_video import check_captions
from ..tasks.video_retrieval import VideoGPTRetrievalPipeline
from ..training.feed import subset


CUTOFFS = (1, 5, 10)
NUM_EVALUATION_SEEDS = 10_000  # of simulated scenes, kept from training
SCENE_FRAMES = 24


@dataclass
class RetrievalScores:
    """
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
    video_embeds: np.ndarray, text_embeds: np.ndarray, captions: Sequence[str], texts: Sequence[str]
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


def distinct_scenes(num_scenes: int, sampling: Sampling, world: str = "physics") -> VideoTable:
    """The first simulated scenes that are kept for evaluation (seeds from 0 on) of which no two have one caption.

    Raises:
        ValueError: if there are not so many, or they are shorter than a clip.
    """
    size, seeds = sampling.longest_side, {}
    for seed in range(NUM_EVALUATION_SEEDS):
        if len(seeds) == num_scenes:
            break
        seeds.setdefault(SimulatedScene(seed, SCENE_FRAMES, size, world).describe()["caption"], seed)
    if len(seeds) < num_scenes:
        raise ValueError(
            f"Only {len(seeds)} evaluation scenes of '{world}' have captions of their own: ask for fewer."
        )
    wanted = list(seeds.values())
    table = VideoTable.simulated(wanted[-1] + 1, SCENE_FRAMES, sampling, first_seed=0, world=world)
    table = subset(table, wanted)
    table.dropped = DroppedVideos(1.0, len(table))
    return table


def captioned_videos(
    sampling: Sampling,
    dataset_file: str | Path | None = None,
    data: str | Path | None = None,
    caption_column: str = "caption",
    simulated: int | None = None,
    world: str = "physics",
) -> VideoTable:
    """Videos to score on: those of a CSV or JSONL table whose paths start from `data`, or `simulated` scenes.

    Raises:
        ValueError: neither or both are given, no video is usable, or one has no caption.
    """
    if (dataset_file is None) == (simulated is None):
        raise ValueError(
            "give a table of videos and captions by --dataset-file, or a number of scenes by --simulated."
        )
    if simulated is not None:
        return distinct_scenes(simulated, sampling, world)
    table = VideoTable.from_table(
        dataset_file, sampling, caption_column=caption_column, root=data, max_bad_fraction=1.0
    )
    check_captions([record.caption for record in table], [record.id for record in table])
    return table


def evaluate_retrieval(pipe: VideoGPTRetrievalPipeline, table: VideoTable) -> dict[str, RetrievalScores]:
    """Both ways over all videos of a table.

    A video that turns out not to decode is left out, and named in `table.dropped`.

    Raises:
        ValueError: if no video could be read.
    """
    embeds, captions = [], []
    for index, embed in pipe.encode_table(table):
        embeds.append(embed.numpy())
        captions.append(table[index].caption)
    if not embeds:
        raise ValueError(f"No video could be read: {table.dropped.summary()}.{table.dropped.first()}")
    texts = sorted(set(captions))
    return score_both_ways(np.stack(embeds), pipe.encode_texts(texts).numpy(), captions, texts)


def format_retrieval(scores: dict[str, RetrievalScores]) -> str:
    """The scores as a Markdown table."""
    lines = ["| | " + " | ".join(f"R@{k}" for k in CUTOFFS) + " | median rank | chance of R@1 |"]
    lines.append("|---" * (3 + len(CUTOFFS)) + "|")
    for name, way in scores.items():
        recalls = " | ".join(f"{100 * way.recall[k]:.1f} %" for k in CUTOFFS)
        sizes = f"{way.num_queries} in {way.num_candidates}"
        lines.append(f"| {name} ({sizes}) | {recalls} | {way.median_rank:g} | {100 * way.chance:.1f} % |")
    return "\n".join(lines)
