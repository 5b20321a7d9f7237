"""A retriever scored on videos with captions, or on simulated scenes, by the figures of [`metrics.retrieval`]."""

from pathlib import Path

import numpy as np

from ..data.sampling import Sampling
from ..data.videos import DroppedVideos, SimulatedScene, VideoTable
from ..metrics.retrieval import RetrievalScores, score_both_ways
from ..tasks.text_to_video import check_captions
from ..tasks.video_retrieval import VideoGPTRetrievalPipeline
from ..training.feed import subset


NUM_EVALUATION_SEEDS = 10_000  # of simulated scenes, kept from training
SCENE_FRAMES = 24


def distinct_scenes(num_scenes: int, sampling: Sampling, *, world: str = "physics") -> VideoTable:
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
    table = VideoTable.simulated(wanted[-1] + 1, SCENE_FRAMES, sampling=sampling, first_seed=0, world=world)
    table = subset(table, wanted)
    table.dropped = DroppedVideos(1.0, len(table))
    return table


def captioned_videos(
    sampling: Sampling,
    dataset_file: str | Path | None = None,
    *,
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
        return distinct_scenes(simulated, sampling, world=world)
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
    return score_both_ways(np.stack(embeds), pipe.encode_texts(texts).numpy(), captions=captions, texts=texts)
