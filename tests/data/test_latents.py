import contextlib
import json
import pickle
import resource
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from run_scripts import run_file
from safetensors.torch import save_file
from tiny_models import tiny_autoencoder_of
from torch.utils.data import DataLoader, Dataset

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.data import latents
from diffusers_videogpt.data.latents import (
    LatentCache,
    encode_moments,
    make_cache_key,
    sample_latents,
    write_latent_cache,
)
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.video_io import write_video


SAMPLING = Sampling(max_num_frames=5, frame_interval=(1, 2), longest_side=32)
SHARD = 100_000  # bytes: two of the five videos below


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.6,
        shift_factor=0.1,
    )
    return vae.eval()


def noise_frames(num_frames, height=16, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path):
    """Five videos of 12 frames in two shapes."""
    for number in range(5):
        size = (32, 16) if number % 2 else (16, 32)
        write_video(tmp_path / "videos" / f"{number}.mp4", noise_frames(12, *size, seed=number), fps=8)
    return tmp_path / "videos"


class CallCounter:
    """Counts the calls of a VAE's encoder and the frames that went through."""

    def __init__(self, vae):
        self.shapes, self.hook = [], vae.encoder.register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        self.shapes.append(tuple(inputs[0].shape))


def test_weights_differ_by_name_and_shape_too():
    modules = (
        torch.nn.Linear(2, 3, bias=False),
        torch.nn.Linear(3, 2, bias=False),
        torch.nn.PReLU(6),
        torch.nn.PReLU(6),
    )
    for module in modules:
        torch.nn.init.ones_(module.weight)
    hashes = [latents.hash_weights(module) for module in (*modules, torch.nn.Sequential(modules[0]))]
    assert hashes[2] == hashes[3] and len(set(hashes)) == 4


# Encoding


def test_latents_are_those_of_the_pipeline(vae, tiny_transformer):
    frames = noise_frames(5)
    pipe = VideoGPTPipeline(vae, tiny_transformer, NextClipFlowMatchScheduler())
    expected = pipe.encode_frames(torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 127.5 - 1, seeded())
    moments = encode_moments(vae, frames)
    assert moments.shape == (5, 8, 8, 16) and moments.dtype == torch.float32
    torch.testing.assert_close(
        sample_latents(moments, vae.config, generator=seeded()), expected[0], atol=1e-5, rtol=1e-5
    )


def test_autoencoder_without_posterior(tiny_transformer):
    vae = tiny_autoencoder_of(latent_channels=3, scaling_factor=2.0)
    frames = noise_frames(3)
    moments = encode_moments(vae, torch.from_numpy(frames))
    assert moments.shape == (3, 3, 2, 4)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = 2.0 * vae.encode(pixels).latents.transpose(0, 1)
    torch.testing.assert_close(sample_latents(moments, vae.config), expected)


def test_every_distinct_frame_is_encoded_once(vae):
    frames = noise_frames(6)
    videos = np.stack([frames[[0, 1, 1, 2]], frames[[2, 3, 4, 0]]])
    counter = CallCounter(vae)
    moments = encode_moments(vae, videos, batch_size=3)
    counter.hook.remove()
    assert counter.shapes == [(3, 3, 16, 32)] * 2  # 5 distinct frames
    assert moments.shape == (2, 4, 8, 8, 16)
    expected = encode_moments(vae, frames, batch_size=3)
    assert torch.equal(moments, expected[torch.tensor([[0, 1, 1, 2], [2, 3, 4, 0]])])


@pytest.mark.parametrize("others", [0, 3, 18])
def test_moments_do_not_depend_on_the_other_frames(vae, others):
    frame = noise_frames(1)
    together = np.concatenate([noise_frames(others, seed=1), frame, noise_frames(2, seed=2)])
    assert torch.equal(encode_moments(vae, together)[others], encode_moments(vae, frame)[0])


def test_the_vae_keeps_its_own_precision(vae):
    half = AutoencoderKL.from_config(vae.config).to(torch.bfloat16)
    moments = encode_moments(half, noise_frames(2))
    assert moments.dtype == torch.float32 and torch.equal(moments, moments.bfloat16().float())


def test_what_cannot_be_encoded(vae):
    with pytest.raises(ValueError, match=r"uint8 \(F, H, W, 3\).* got float32 \(2, 16, 16, 3\)"):
        encode_moments(vae, np.zeros((2, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \(16, 16, 3\)"):
        encode_moments(vae, np.zeros((16, 16, 3), np.uint8))
    overflowing = AutoencoderKL.from_config(vae.config)
    overflowing.quant_conv.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="NaN or infinity in torch.float32"):
        encode_moments(overflowing, noise_frames(1))


# Cache


def write(cache_dir, root, vae, sampling=SAMPLING, seed=0, **options):
    """Encodes a folder of videos; returns the cache, the table and the key."""
    table = VideoTable.from_folder(root, sampling)
    key = make_cache_key(vae, sampling, seed=seed)
    write_latent_cache(cache_dir, table, vae=vae, key=key, **{"max_shard_size": SHARD, "num_windows": 2} | options)
    return LatentCache(cache_dir, key), table, key


def test_cache_and_pixels_give_the_same_latents(tmp_path, folder, vae):
    cache, table, _ = write(tmp_path / "cache", folder, vae)
    assert len(list((tmp_path / "cache").glob("latents-*"))) > 1
    assert cache.ids == [table.id(i) for i in range(5)]
    for batch in ([0, 2, 4], [1, 3]):  # those of one size, as in training
        for draw in range(2):
            frames = [table.read(index, table.draw_window(index, draw, seed=0)) for index in batch]
            for index, moments in zip(batch, encode_moments(vae, np.stack(frames)), strict=True):
                assert torch.equal(cache.read(index, draw), moments)
                from_cache = sample_latents(cache.read(index, draw), vae.config, generator=seeded(index))
                assert torch.equal(from_cache, sample_latents(moments, vae.config, generator=seeded(index)))
    for index in range(len(table)):
        assert (cache.size(index), cache.length(index)) == (table.size(index), table.length(index))
        assert torch.equal(cache.read(index, 2), cache.read(index, 0))
    assert any(not torch.equal(cache.read(index, 0), cache.read(index, 1)) for index in range(5))


def test_no_frame_of_a_video_is_encoded_twice(tmp_path, folder, vae):
    counter = CallCounter(vae)
    write(tmp_path / "cache", folder, vae, num_windows=20, batch_size=1)
    counter.hook.remove()
    assert len(counter.shapes) == 1 + 5 * 12  # the trial that tells the size, then each frame of 5 videos


def test_a_cache_made_otherwise_is_refused_by_the_name_of_what_differs(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    _, table, key = write(cache_dir, folder, vae)
    other_weights = AutoencoderKL.from_config(vae.config).eval()
    other_config = AutoencoderKL.from_config({**vae.config, "shift_factor": 0.2})
    other_config.load_state_dict(vae.state_dict())
    cases = {
        r"\(sampling.longest_side 32 → 16\)": make_cache_key(vae, replace(SAMPLING, longest_side=16), seed=0),
        r"\(sampling.frame_interval \[1, 2\] → \[1, 1\]\)": make_cache_key(
            vae, replace(SAMPLING, frame_interval=(1, 1)), seed=0
        ),
        r"\(seed 0 → 1\)": make_cache_key(vae, SAMPLING, seed=1),
        r"\(vae.weights '.*' → '.*'\)": make_cache_key(other_weights, SAMPLING, seed=0),
        r"\(vae.shift_factor 0.1 → 0.2\)": make_cache_key(other_config, SAMPLING, seed=0),
        r"\(source None → 'elsewhere'\)": key | {"source": "elsewhere"},
    }
    for message, other in cases.items():
        with pytest.raises(ValueError, match=message):
            LatentCache(cache_dir, other)
        with pytest.raises(ValueError, match=message):
            write_latent_cache(cache_dir, table, vae=vae, key=other, num_windows=2, max_shard_size=SHARD)
    with pytest.raises(ValueError, match=r"num_windows 2 → 3"):
        write_latent_cache(cache_dir, table, vae=vae, key=key, num_windows=3, max_shard_size=SHARD)
    assert len(LatentCache(cache_dir, key)) == 5  # the refused calls changed nothing


def test_complete_shards_are_kept_and_only_the_missing_one_is_encoded(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    cache, _, key = write(cache_dir, folder, vae)
    expected = [cache.read(index, 1).clone() for index in range(5)]
    shards = sorted(cache_dir.glob("latents-*"))
    assert len(shards) == 3 and max(path.stat().st_size for path in shards) <= SHARD
    kept = {path: path.stat().st_mtime_ns for path in shards if path != shards[0]}
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    with pytest.raises(ValueError, match="latents-00000.safetensors has 1000 bytes instead of"):
        LatentCache(cache_dir, key)

    again, _, _ = write(cache_dir, folder, vae)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert all(torch.equal(again.read(index, 1), expected[index]) for index in range(5))

    counter = CallCounter(vae)
    write(cache_dir, folder, vae)
    counter.hook.remove()
    assert len(counter.shapes) == 1  # nothing but the trial


KILLED_IN_THE_FOURTH_VIDEO = """
import os, signal, sys
from diffusers import AutoencoderKL
from diffusers_videogpt.data.latents import make_cache_key, write_latent_cache
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable

class Killed(VideoTable):
    def read(self, index, window):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, window)

cache_dir, root, vae_dir, shard = sys.argv[1:]
vae = AutoencoderKL.from_pretrained(vae_dir)
sampling = Sampling(max_num_frames=5, frame_interval=(1, 2), longest_side=32)
table = Killed.from_folder(root, sampling)
key = make_cache_key(vae, sampling, seed=0)
write_latent_cache(cache_dir, table, vae=vae, key=key, num_windows=2, max_shard_size=int(shard))
"""


def test_killed_while_writing(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    vae.save_pretrained(tmp_path / "vae")
    script = tmp_path / "killed.py"
    script.write_text(KILLED_IN_THE_FOURTH_VIDEO)
    killed = run_file(script, cache_dir, folder, tmp_path / "vae", SHARD, check=False)
    assert killed.returncode == -9, killed.stderr
    first = cache_dir / "latents-00000.safetensors"
    written = first.stat().st_mtime_ns
    # What a process leaves that is killed in the middle of a file.
    (cache_dir / "latents-00001.safetensors.123.partial").write_bytes(first.read_bytes()[:500])
    key = make_cache_key(vae, SAMPLING, seed=0)
    with pytest.raises(FileNotFoundError, match="no finished latent cache: there is no index.json"):
        LatentCache(cache_dir, key)

    cache, _, _ = write(cache_dir, folder, vae)
    assert first.stat().st_mtime_ns == written
    unbroken, _, _ = write(tmp_path / "unbroken", folder, vae)
    assert all(torch.equal(cache.read(i, d), unbroken.read(i, d)) for i in range(5) for d in range(2))
    assert not list(cache_dir.glob("*.partial"))


def test_processes_share_the_shards_and_the_last_one_writes_the_index(tmp_path, folder, vae):
    alone, table, key = write(tmp_path / "alone", folder, vae)
    together = tmp_path / "together"
    options = {"num_windows": 2, "max_shard_size": SHARD, "num_processes": 2}
    write_latent_cache(together, table, vae=vae, key=key, rank=1, **options)
    assert [path.name for path in together.iterdir()] == ["latents-00001.safetensors"]
    write_latent_cache(together, table, vae=vae, key=key, rank=0, **options)
    assert (together / "index.json").read_text() == (tmp_path / "alone" / "index.json").read_text()
    for path in together.glob("latents-*"):
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


def test_captions_and_labels_are_kept(tmp_path, folder, vae):
    (folder / "table.csv").write_text("video,text,kind\n3.mp4,a red ball,fall\n1.mp4,two boxes,push\n")
    table = VideoTable.from_table(folder / "table.csv", SAMPLING, caption_column="text", label_column="kind")
    write_latent_cache(tmp_path / "cache", table, vae=vae, key=make_cache_key(vae, SAMPLING, seed=0))
    cache = LatentCache(tmp_path / "cache", {})
    assert (cache.ids, cache.labels) == (["3.mp4", "1.mp4"], ["fall", "push"])
    assert cache.captions == ["a red ball", "two boxes"]


def test_videos_added_and_removed_since(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    write(cache_dir, folder, vae)
    write_video(folder / "5.mp4", noise_frames(12, seed=5), fps=8)
    cache, table, _ = write(cache_dir, folder, vae)
    assert cache.ids == [table.id(i) for i in range(6)]
    files = {path.name: path.read_bytes() for path in cache_dir.iterdir()}
    for number in range(1, 6):
        (folder / f"{number}.mp4").unlink()
    with pytest.raises(ValueError, match=r"holds 5 videos that are not among these 1 \(1.mp4, 2.mp4, 3.mp4, …\)"):
        write(cache_dir, folder, vae)
    assert {path.name: path.read_bytes() for path in cache_dir.iterdir()} == files


def test_only_shards_of_the_cache_are_cleaned_up(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    write(cache_dir, folder, vae)
    (cache_dir / "latents-notes.txt").write_text("mine")
    (cache_dir / "latents-00000.safetensors.123.partial").write_text("cut")
    (cache_dir / "latents-00009.safetensors").write_text("of a longer list")
    (cache_dir / "index.json").unlink()
    before = {path.name for path in cache_dir.iterdir()}
    write(cache_dir, folder, vae)
    gone = before - {path.name for path in cache_dir.iterdir()}
    assert gone == {"latents-00000.safetensors.123.partial", "latents-00009.safetensors"}


def test_another_dataset_of_the_same_rows_is_encoded_anew(tmp_path, vae):
    datasets = pytest.importorskip("datasets")
    caches, means = tmp_path / "cache", []
    for seed in (0, 1, 1):
        write_video(tmp_path / "video.mp4", noise_frames(12, seed=seed), fps=8)
        parquet = tmp_path / str(seed) / "train.parquet"
        parquet.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"video": [(tmp_path / "video.mp4").read_bytes()]}).to_parquet(parquet)
        table = VideoTable.from_dataset(str(parquet.parent), SAMPLING)
        key = make_cache_key(vae, SAMPLING, seed=0)
        write_latent_cache(caches, table, vae=vae, key=key)
        means.append(LatentCache(caches, key).read(0, 0))
        written = (caches / "latents-00000.safetensors").stat().st_mtime_ns
        if seed == 0:
            first = written
    assert first != written and not torch.equal(means[0], means[1]) and torch.equal(means[1], means[2])


def damage(path):
    """Empties the packets behind the third: what is in the container stays right, the frames cannot be decoded."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[3:]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)


def test_videos_that_break_when_they_are_read_are_left_out_and_listed(tmp_path, folder, vae):
    damage(folder / "2.mp4")
    cache, table, key = write(tmp_path / "cache", folder, vae)
    assert len(table) == 5 and cache.ids == ["0.mp4", "1.mp4", "3.mp4", "4.mp4"]
    assert list(cache.dropped) == list(table.dropped) == ["2.mp4"]
    assert cache.dropped["2.mp4"].startswith("unreadable: ") and "2.mp4" in cache.dropped["2.mp4"]
    frames = table.read(3, table.draw_window(3, 0, seed=0))
    assert torch.equal(cache.read(2, 0), encode_moments(vae, frames))

    write_video(folder / "2.mp4", noise_frames(12, seed=7), fps=8)
    cache, _, _ = write(tmp_path / "cache", folder, vae)
    assert len(cache) == 5 and cache.dropped == {}


def test_too_many_broken_videos_stop_the_run(tmp_path, folder, vae):
    for number in (0, 2, 4):
        damage(folder / f"{number}.mp4")
    with pytest.raises(ValueError, match="3 of 5 videos dropped"):
        write(tmp_path / "alone", folder, vae)
    assert not (tmp_path / "alone" / "index.json").exists()

    key = make_cache_key(vae, SAMPLING, seed=0)
    options = {"max_shard_size": SHARD, "num_windows": 2, "num_processes": 2}
    # The first finds two and goes on, the second finds one, and sees that they are too many together.
    write_latent_cache(tmp_path / "two", VideoTable.from_folder(folder, SAMPLING), vae=vae, key=key, rank=0, **options)
    with pytest.raises(ValueError, match="3 of 5 videos dropped"):
        write_latent_cache(
            tmp_path / "two", VideoTable.from_folder(folder, SAMPLING), vae=vae, key=key, rank=1, **options
        )
    assert not (tmp_path / "two" / "index.json").exists()


@contextlib.contextmanager
def disk_full_after(num_bytes):
    """A file that grows beyond this fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    with disk_full_after(20_000), pytest.raises(OSError, match="latents-00000.* could not be written .* make room"):
        write(cache_dir, folder, vae)
    assert list(cache_dir.iterdir()) == []

    write(cache_dir, folder, vae)
    shards = {path: path.stat().st_mtime_ns for path in cache_dir.glob("latents-*")}
    (cache_dir / "index.json").unlink()
    with disk_full_after(500), pytest.raises(OSError, match="index.json could not be written"):
        write(cache_dir, folder, vae)
    assert {path: path.stat().st_mtime_ns for path in cache_dir.iterdir()} == shards

    # An index that is no longer true does not outlive the first change.
    _, _, key = write(cache_dir, folder, vae)
    write_video(folder / "0.mp4", noise_frames(14, seed=9), fps=8)
    with disk_full_after(20_000), pytest.raises(OSError, match="latents-00000"):
        write(cache_dir, folder, vae)
    with pytest.raises(FileNotFoundError, match="no finished latent cache"):
        LatentCache(cache_dir, key)


class Moments(Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, index):
        return self.cache.read(index, 0)


def test_loader_workers_read_the_cache(tmp_path, folder, vae):
    cache, _, _ = write(tmp_path / "cache", folder, vae)
    expected = [cache.read(index, 0) for index in range(5)]  # so its files are open in this process
    loader = DataLoader(Moments(cache), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
    sent = pickle.loads(pickle.dumps(cache))
    assert all(torch.equal(sent.read(index, 0), expected[index]) for index in range(5))


def test_workers_encode_the_same(tmp_path, folder, vae):
    write(tmp_path / "one", folder, vae)
    write(tmp_path / "two", folder, vae, num_workers=2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_moments_are_kept_in_the_precision_of_the_vae(tmp_path, folder, vae):
    half = AutoencoderKL.from_config(vae.config).to(torch.bfloat16)
    cache, table, _ = write(tmp_path / "cache", folder, half)
    frames = table.read(0, table.draw_window(0, 0, seed=0))
    assert torch.equal(cache.read(0, 0), encode_moments(half, frames))
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("latents-*"))
    write(tmp_path / "full", folder, vae)
    assert size < 0.8 * sum(path.stat().st_size for path in (tmp_path / "full").glob("latents-*"))


def flip_a_byte(path):
    """The last byte of the file is a latent's."""
    data = bytearray(path.read_bytes())
    data[-100] ^= 64
    path.write_bytes(data)


def test_a_changed_shard_is_found_by_its_content(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    cache, table, key = write(cache_dir, folder, vae)
    before = {index: cache.read(index, 0) for index in range(len(cache))}
    content = cache.content_hash()
    for path in sorted(cache_dir.glob("*.safetensors")):
        flip_a_byte(path)
    damaged = LatentCache(cache_dir, key)  # of the same size
    found = []
    for index in range(len(damaged)):
        try:
            damaged.read(index, 0)
        except ValueError as error:
            found.append(str(error))
    assert found and all("are not those that were written: copy it again, or run" in message for message in found)
    # Writing it again mends it.
    cache, _, _ = write(cache_dir, folder, vae)
    assert all(torch.equal(cache.read(index, 0), moments) for index, moments in before.items())
    assert cache.content_hash() == content != cache.content_hash([0])


def test_a_cache_of_an_earlier_version_is_read(tmp_path, folder, vae):
    cache_dir = tmp_path / "cache"
    _, _, key = write(cache_dir, folder, vae)
    index = json.loads((cache_dir / "index.json").read_text())
    for video in index["videos"]:
        del video["digest"], video["source_digest"]
    (cache_dir / "index.json").write_text(json.dumps(index))
    assert LatentCache(cache_dir, key).read(0, 0).isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"file": "../elsewhere.safetensors"}, r"names a file outside of its folder \(../elsewhere"),
        ({"file": "/etc/passwd"}, "names a file outside of its folder"),
        (None, "is not the index of a latent cache"),
        ("text", "is no JSON"),
    ],
)
def test_an_index_that_is_not_to_be_trusted(tmp_path, folder, vae, change, message):
    cache_dir = tmp_path / "cache"
    _, _, key = write(cache_dir, folder, vae)
    path = cache_dir / "index.json"
    index = json.loads(path.read_text())
    if isinstance(change, dict):
        index["shards"][0] |= change
    path.write_text("no json" if change == "text" else json.dumps([1] if change is None else index))
    with pytest.raises(ValueError, match=message):
        LatentCache(cache_dir, key)


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"cache": "[1]"}, {"cache": "{"}])
def test_a_shard_of_something_else_is_named(tmp_path, metadata):
    path = tmp_path / "latents-00000.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match="latents-00000.safetensors is no shard of cached latents"):
        latents._header(path)
