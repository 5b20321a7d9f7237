"""Pooled clean tokens against a slow twin in the authors' order; features of a table, their cache, and who shares it."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from run_scripts import make_videos

from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.tasks import video_features
from diffusers_videogpt.tasks.token_pooling import POOLINGS, pool_clean_tokens, pool_latents, resolve_layer
from diffusers_videogpt.tasks.video_features import clip_latents, clips_of, extract_features, extract_layers
from diffusers_videogpt.video_io import write_video


SAMPLING = Sampling(4, height=32, width=32)


@pytest.fixture
def latents():
    return torch.randn(2, 4, 5, 4, 6, generator=torch.Generator().manual_seed(1))


def slow_clean_tokens(model, latents) -> list[torch.Tensor]:
    """Begin, patches, end, frame after frame; every layer's patches (F, P, D), of one sample, one head at a time."""
    num_frames, (rows, columns) = latents.shape[1], (latents.shape[2] // 2, latents.shape[3] // 2)
    begin, end, _ = model.hint_embed.weight
    tokens, rank = [], []
    for frame in latents.unbind(1):
        patches = model.clean_patch_embed(frame[None])[0].flatten(1).T + model.pos_embed(rows, columns).flatten(0, 1)
        tokens += [begin[None], patches, end[None]]
        rank += [0, *[1] * len(patches), 2]
    x, rank = torch.cat(tokens), torch.tensor(rank)
    frame = torch.arange(num_frames).repeat_interleave(rows * columns + 2)
    sees = (frame[None] < frame[:, None]) | ((frame[None] == frame[:, None]) & (rank[None] <= rank[:, None]))
    cos, sin = (table[0, :, 0] for table in model.rope(torch.arange(len(x))[None]))

    def rotate(y):
        first, second = y.chunk(2, dim=-1)
        return y * cos + torch.cat([-second, first], dim=-1) * sin

    states = [x]
    for block in model.transformer_blocks:
        y, attn, heads = block.norm1(x), block.attn, []
        for head in torch.arange(attn.heads * attn.head_dim).view(attn.heads, -1):
            q, k, v = (y @ layer.weight[head].T for layer in (attn.to_q, attn.to_k, attn.to_v))
            scores = (rotate(q) @ rotate(k).T / attn.head_dim**0.5).masked_fill(~sees, -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + torch.cat(heads, dim=-1) @ attn.to_out[0].weight.T
        x = x + block.ff(block.norm2(x))
        states.append(x)
    return [state[rank == 1].view(num_frames, -1, x.shape[-1]) for state in states]


@torch.no_grad()
@pytest.mark.parametrize("backend", ["native", "flex"])
def test_tokens_are_those_of_the_slow_twin(tiny_transformer, latents, backend):
    tiny_transformer.set_attention_backend(backend)
    found = tiny_transformer.encode_clean(latents, [0, 2, 1])
    slow = slow_clean_tokens(tiny_transformer, latents[1])
    for tokens, layer in zip(found, (0, 2, 1), strict=True):
        assert tokens.shape == (2, 5, 6, 32)
        torch.testing.assert_close(tokens[1], slow[layer], atol=1e-5, rtol=0)
    pooled = pool_clean_tokens(tiny_transformer, latents, layer=-2)
    torch.testing.assert_close(pooled[1], slow[1].mean((0, 1)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_many_tokens_on_a_cpu_go_by_tiles(tiny_transformer):
    long = torch.randn(1, 4, 32, 16, 16, generator=torch.Generator().manual_seed(1))  # 2112 tokens
    few = tiny_transformer.encode_clean(long[:, :, :8], [2])[0]
    many = tiny_transformer.encode_clean(long, [2])[0]
    torch.testing.assert_close(many[:, :8], few, atol=1e-5, rtol=0)
    torch.testing.assert_close(many[0], slow_clean_tokens(tiny_transformer, long[0])[2], atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_do_not_know_later_ones(tiny_transformer, latents):
    whole, part = (tiny_transformer.encode_clean(x, [2])[0] for x in (latents, latents[:, :, :3]))
    torch.testing.assert_close(whole[:, :3], part, atol=1e-5, rtol=0)
    assert (pool_clean_tokens(tiny_transformer, latents, layer=-1) - part.mean((1, 2))).abs().max() > 1e-3


def test_gradients_with_checkpointing_and_lora(tiny_transformer, latents):
    """What lies behind the layer is not computed; LoRA trains; checkpointing gives the same gradients."""
    tiny_transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            tiny_transformer.enable_gradient_checkpointing()
        tiny_transformer.zero_grad()
        pool_clean_tokens(tiny_transformer, latents, layer=1).square().sum().backward()
        gradients.append({n: p.grad for n, p in tiny_transformer.named_parameters() if p.grad is not None})
    assert gradients[0] and all("lora" in name and "blocks.0" in name for name in gradients[0])
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        adapted = pool_clean_tokens(tiny_transformer, latents, layer=1)
        tiny_transformer.disable_adapters()
        assert (pool_clean_tokens(tiny_transformer, latents, layer=1) - adapted).abs().max() > 1e-4


def test_layers_and_poolings(tiny_transformer, latents):
    assert [resolve_layer(num_layers) for num_layers in (2, 3, 4, 32)] == [1, 2, 3, 21]
    assert [resolve_layer(9, layer) for layer in (None, 0, 9, -1, -10)] == [6, 0, 9, 9, 0]
    with pytest.raises(ValueError, match=r"`layer`=3 of a model with 2 layers: choose one of -3\.\.2"):
        pool_clean_tokens(tiny_transformer, latents, layer=3)
    with pytest.raises(ValueError, match="`pooling` is one of mean, .*, got 'max'"):
        pool_clean_tokens(tiny_transformer, latents, pooling="max")
    with pytest.raises(ValueError, match="Latents must be"):
        pool_clean_tokens(tiny_transformer, latents[:, :3])

    tokens = torch.randn(2, 6, 3, 5)
    thirds = POOLINGS["thirds"](tokens)
    torch.testing.assert_close(thirds[:, 5:10], tokens[:, 2:4].mean((1, 2)))
    torch.testing.assert_close(POOLINGS["mean_std"](tokens)[:, 5:], tokens.reshape(2, 18, 5).std(1))
    torch.testing.assert_close(pool_latents(latents), latents.mean((2, 3, 4)))
    torch.testing.assert_close(pool_latents(latents, keep_pixels=True)[:, 4:8], latents[:, :, :, 0, 1].mean(2))


def test_clips_of_one_video():
    """Evenly over the video, at the middle interval."""
    video = np.zeros((13, 32, 32, 3), np.uint8) + np.arange(13, dtype=np.uint8)[:, None, None, None]
    assert clips_of(video, SAMPLING, num_clips=1)[..., 0, 0, 0].tolist() == [[5, 6, 7, 8]]
    found = clips_of(video, Sampling(4, frame_interval=(1, 3), height=16, width=16), num_clips=3)
    assert found.shape == (3, 4, 16, 16, 3)
    assert found[..., 0, 0, 0].tolist() == [[1, 3, 5, 7], [3, 5, 7, 9], [5, 7, 9, 11]]
    with pytest.raises(ValueError, match="A video of 3 frames is too short: clips are of 4 frames"):
        clips_of(video[:3], SAMPLING, num_clips=1)


def test_short_and_broken_files(tmp_path):
    path = next(make_videos(tmp_path, 1, num_frames=3).iterdir())
    with pytest.raises(ValueError, match="is too short: 3 frames in .* 4 are needed"):
        clips_of(path, SAMPLING, num_clips=1)
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="is unreadable: "):
        clips_of(path, SAMPLING, num_clips=1)


def test_features_are_computed_once(tmp_path, make_tiny_pipe, monkeypatch):
    """As clip by clip; then from files, of which only a missing one is made again; anew for other weights or videos."""
    monkeypatch.setattr(video_features, "VIDEOS_PER_FILE", 2)
    pipe, cache = make_tiny_pipe(), tmp_path / "features"
    videos = make_videos(tmp_path / "videos", 5)
    first_file = min(videos.iterdir())
    first_file.write_bytes(first_file.read_bytes() + bytes(50_000))  # nothing reads what is behind the video
    table = VideoTable.from_folder(videos, SAMPLING)
    encoded = []
    pipe.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))
    first, second = extract_layers(pipe, table, layers=[1, 2], num_clips=2, cache_dir=cache, batch_size=3)
    assert first.values.shape == (5, 2, 32) and first.values.dtype == torch.float32
    assert [record.id for record in first.records] == [record.id for record in table]
    with torch.no_grad():
        alone = pool_clean_tokens(
            pipe.transformer, clip_latents(pipe.vae, clips_of(table[4].source, SAMPLING, num_clips=2)), layer=2
        )
    torch.testing.assert_close(second.values[4], alone, atol=1e-5, rtol=0)

    count = len(encoded)
    again = extract_layers(pipe, table, layers=[1, 2], num_clips=2, cache_dir=cache)
    assert torch.equal(again[1].values, second.values) and len(encoded) == count
    (folder,) = cache.iterdir()
    (folder / "features-00001.safetensors").unlink()
    again = extract_layers(pipe, table, layers=[1, 2], num_clips=2, cache_dir=cache, batch_size=3)
    torch.testing.assert_close(again[0].values, first.values, atol=1e-6, rtol=0)
    assert 0 < len(encoded) - count < count

    pipe.transformer.clean_patch_embed.bias.data += 1
    changed = extract_features(pipe, table, layer=1, num_clips=2, cache_dir=cache)
    assert (changed.values - first.values).abs().max() > 1e-3 and len(list(cache.iterdir())) == 2

    replaced = table[0].source  # by another video of as many bytes
    replaced.write_bytes(table[1].source.read_bytes().ljust(replaced.stat().st_size, b"\0"))
    anew = extract_features(pipe, table, layer=1, num_clips=2, cache_dir=cache)
    assert len(list(cache.iterdir())) == 3 and not torch.equal(anew.values[0], changed.values[0])


def test_every_setting_has_a_folder_of_its_own(tmp_path, make_tiny_pipe):
    pipe, cache = make_tiny_pipe(), tmp_path / "features"
    table = VideoTable.from_folder(make_videos(tmp_path / "videos", 1), SAMPLING)
    settings = [{"layer": 1}, {"layer": 2}, {"layer": 1, "pooling": "mean_std"}, {"layer": 1, "num_clips": 2}]
    for count, arguments in enumerate(settings, start=1):
        extract_features(pipe, table, **arguments, cache_dir=cache)
        assert len(list(cache.iterdir())) == count
    pipe.transformer.clean_patch_embed.bias.data += 1
    extract_features(pipe, table, layer=1, cache_dir=cache)
    pipe.transformer.to(torch.bfloat16)
    features = extract_features(pipe, table, layer=1, cache_dir=cache)
    assert len(list(cache.iterdir())) == 6 and features.values.dtype == torch.float32


def test_videos_of_one_size_go_together(tmp_path, make_tiny_pipe, monkeypatch):
    for number, width in enumerate((32, 32, 32, 64)):
        write_video(tmp_path / "videos" / f"{number}.mp4", np.zeros((4, 32, width, 3), np.uint8), fps=8)
    table, shapes, pool = (
        VideoTable.from_folder(tmp_path / "videos", Sampling(4)),
        [],
        video_features.pool_clean_layers,
    )

    def record(transformer, latents, **settings):
        shapes.append((latents.shape[0], *latents.shape[-2:]))
        return pool(transformer, latents, **settings)

    monkeypatch.setattr(video_features, "pool_clean_layers", record)
    extract_features(make_tiny_pipe(), table, cache_dir=tmp_path / "features", batch_size=2)
    assert shapes == [(2, 4, 4), (1, 4, 4), (1, 4, 8)]


def test_a_video_that_breaks_is_left_out(tmp_path, make_tiny_pipe, monkeypatch):
    """Also when the features are read from the files, which say why."""
    pipe, folder = make_tiny_pipe(), make_videos(tmp_path / "videos", 3)
    broken = sorted(folder.iterdir())[1]
    table = VideoTable.from_folder(folder, SAMPLING)
    data = broken.read_bytes()
    start = data.index(b"mdat") + 8
    broken.write_bytes(data[:start] + bytes(len(data) - start))
    for _ in range(2):
        features = extract_features(pipe, table, cache_dir=tmp_path / "features")
        assert [record.id for record in features.records] == [table.id(0), table.id(2)]
        assert features.values.shape == (2, 1, 32) and list(table.dropped) == [broken.name]
        table.dropped.clear()
