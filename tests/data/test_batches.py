"""The plan of batches and the loader, on small videos made here."""

from collections import Counter

import av
import numpy as np
import pytest
import torch

from diffusers_videogpt.data.batches import BatchPlan, WindowDataset, collate, make_buckets, make_loader
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable, report_dropped
from diffusers_videogpt.video_io import VideoReadError, write_video


class Shapes:
    """Videos known by their shapes alone."""

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def size(self, index):
        return self.shapes[index][:2]

    def length(self, index):
        return self.shapes[index][2]


SHAPES = Shapes([(16, 32, 8)] * 11 + [(32, 16, 8)] * 3 + [(16, 32, 4)] * 1 + [(16, 32, 8)] * 2)


def write_noise(path, count, width=48):
    noise = np.random.default_rng(count).integers(0, 256, (count, 32, width, 3), np.uint8)
    return write_video(path, noise, fps=10, crf=30)


def damage(path, first):
    """Blanks what is in the packets from `first` on: the file still lists them."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets[first:]:
        data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    path.write_bytes(data)


@pytest.fixture
def table(tmp_path):
    for number in range(5):
        write_noise(tmp_path / f"{number}.mp4", 20 + number)
    for number in range(5, 8):
        write_noise(tmp_path / f"{number}.mp4", 20 + number, width=64)
    return VideoTable.from_folder(tmp_path, Sampling(4, frame_interval=(1, 3)))


@pytest.mark.parametrize("global_batch_size", [1, 2, 4, 5, 16])
def test_every_epoch_draws_every_video_and_no_window_twice(global_batch_size):
    plan = BatchPlan(SHAPES, global_batch_size, seed=3)
    buckets = [set(members) for members in make_buckets(SHAPES).values()]
    assert len(buckets) == 3
    assert plan.num_steps_per_epoch == sum(-(-len(b) // global_batch_size) for b in buckets)
    draws = {index: [] for index in range(len(SHAPES))}
    for epoch in range(7):
        steps = range(epoch * plan.num_steps_per_epoch, (epoch + 1) * plan.num_steps_per_epoch)
        assert {plan.epoch_of(step) for step in steps} == {epoch}
        drawn = Counter()
        for step in steps:
            batch = plan.step(step)
            assert len(batch) == global_batch_size
            # No padding: one shape a batch.
            assert sum({index for index, _ in batch} <= bucket for bucket in buckets) == 1
            for index, draw in batch:
                draws[index].append(draw)
                drawn[index] += 1
        assert set(drawn) == set(range(len(SHAPES)))
    for members in buckets:
        for index in members:
            assert sorted(draws[index]) == list(range(len(draws[index])))
        # Filling up is shared out evenly.
        uses = [len(draws[index]) for index in members]
        assert max(uses) - min(uses) <= 1
    total = plan.num_steps_per_epoch * global_batch_size
    assert plan.fill_fraction == pytest.approx((total - len(SHAPES)) / total)


def test_the_plan_has_no_state_and_is_shuffled():
    plan = BatchPlan(SHAPES, 2, seed=3)
    steps = [plan.step(step) for step in range(60)]
    assert [BatchPlan(SHAPES, 2, seed=3).step(step) for step in (59, 0, 17)] == [steps[59], steps[0], steps[17]]
    assert [BatchPlan(SHAPES, 2, seed=4).step(step) for step in range(60)] != steps
    size = plan.num_steps_per_epoch
    orders = [tuple(index for step in steps[k * size : (k + 1) * size] for index, _ in step) for k in range(3)]
    assert len(set(orders)) == 3 and list(orders[0]) != sorted(orders[0])
    # Batches of the large bucket do not all come first.
    shapes = [SHAPES.shapes[step[0][0]] for step in steps[:size]]
    assert shapes != sorted(shapes) and shapes != sorted(shapes, reverse=True)


def test_every_epoch_puts_other_videos_together():
    plan = BatchPlan(Shapes([(16, 32, 8)] * 24), 4, seed=3)
    size = plan.num_steps_per_epoch
    first, second, third = (
        {frozenset(index for index, _ in plan.step(step)) for step in range(k * size, (k + 1) * size)}
        for k in range(3)
    )
    assert not first & second and not second & third


def test_batches_of_all_buckets_are_mixed():
    plan = BatchPlan(Shapes([(16, 32, 8)] * 24 + [(32, 16, 8)] * 24), 4, seed=3)
    is_second = [plan.step(step)[0][0] >= 24 for step in range(plan.num_steps_per_epoch)]
    assert is_second != sorted(is_second) and is_second != sorted(is_second, reverse=True)


def flatten(batches):
    """What each slot of each step trains on."""
    return {
        (batch["step"], slot): (batch["ids"][i], batch["windows"][i], batch["frames"][i].numpy().tobytes())
        for batch in batches
        for i, slot in enumerate(batch["slots"])
    }


def test_windows_follow_the_seed(table):
    windows = {seed: [WindowDataset(table, seed)[0, draw]["window"] for draw in range(4)] for seed in (0, 5)}
    for seed, of_seed in windows.items():
        assert of_seed == [table.draw_window(0, draw, seed=seed) for draw in range(4)]
    assert windows[0] != windows[5]


def test_slots_are_the_same_however_they_are_spread(table):
    dataset, plan = WindowDataset(table, seed=0), BatchPlan(table, 4, seed=0)
    single = flatten(make_loader(dataset, plan, num_steps=6, batch_size=4))
    assert sorted(single) == [(step, slot) for step in range(6) for slot in range(4)]
    parts = {}
    for rank in range(2):
        parts |= flatten(
            make_loader(dataset, plan, num_steps=6, batch_size=1, accumulation=2, num_processes=2, rank=rank)
        )
    assert parts == single
    for (step, slot), (id, window, frames) in single.items():
        index, draw = plan.step(step)[slot]
        assert id == table[index].id and window == table.draw_window(index, draw, seed=0)
        assert frames == table.read(index, window).tobytes()
    with pytest.raises(ValueError, match="for 4 samples a step, but 2 x 1 processes x 3 micro-batches are 6"):
        make_loader(dataset, plan, num_steps=6, batch_size=2, accumulation=3)


def test_workers_and_a_later_start_change_nothing(table):
    dataset, plan = WindowDataset(table, seed=0), BatchPlan(table, 2, seed=0)
    arguments = {"batch_size": 1, "accumulation": 2}
    straight = list(make_loader(dataset, plan, num_steps=9, **arguments))
    assert [(batch["step"], batch["slots"]) for batch in straight[:4]] == [(0, [0]), (0, [1]), (1, [0]), (1, [1])]
    state = torch.get_rng_state()
    resumed = list(make_loader(dataset, plan, start_step=5, num_steps=4, num_workers=2, **arguments))
    assert torch.equal(torch.get_rng_state(), state)
    assert flatten(resumed) == flatten(straight[10:])
    assert [batch["step"] for batch in resumed] == [batch["step"] for batch in straight[10:]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_video_that_breaks_is_replaced_by_the_next_of_its_bucket(table, tmp_path, num_workers):
    damage(table[1].source, first=3)
    dataset, plan = WindowDataset(table, seed=0), BatchPlan(table, 2, seed=0)
    path = report_dropped(table.dropped, tmp_path / "run")
    batches = list(
        make_loader(dataset, plan, num_steps=12, batch_size=2, num_workers=num_workers, dropped=table.dropped)
    )
    ids = [id for batch in batches for id in batch["ids"]]
    wanted = [table[index].id for step in range(12) for index, _ in plan.step(step)]
    replaced = [(new, old) for new, old in zip(ids, wanted, strict=True) if new != old]
    assert replaced and set(replaced) == {("2.mp4", "1.mp4")}
    assert list(table.dropped) == ["1.mp4"] and "broken" not in batches[0]
    assert path.read_text().splitlines()[1].startswith("1.mp4,breaks while read,")
    # Again, from elsewhere, it is replaced by the same.
    again = list(make_loader(dataset, plan, start_step=4, num_steps=8, batch_size=2))
    assert flatten(again) == flatten(batches[4:])


def test_too_many_that_break_stop_the_run(table):
    for index in (0, 1, 2, 3, 5):
        damage(table[index].source, first=0)
    dataset, plan = WindowDataset(table, seed=0), BatchPlan(table, 1, seed=0)
    loader = make_loader(dataset, plan, num_steps=100, batch_size=1, dropped=table.dropped)
    with pytest.raises(ValueError, match=r"5 of 8 videos dropped \(5 breaks while read\), more than the share of 0.5"):
        list(loader)
    # Without a list of them, it ends where nothing of a bucket is left.
    damage(table[4].source, first=0)
    with pytest.raises(VideoReadError, match="5 videos of one size, one after the other, do not decode:\n  0.mp4: "):
        dataset[0, 0]


def test_collate_stacks_tensors_and_lists_the_rest():
    samples = [{"moments": torch.full((2, 3), float(i)), "id": str(i), "caption": None} for i in range(2)]
    batch = collate(samples)
    assert batch["moments"].shape == (2, 2, 3) and batch["ids"] == ["0", "1"] and batch["captions"] == [None, None]
    assert batch["broken"] == []
