"""Videos with an action a frame: files beside them, columns of tables, LeRobot's datasets; in samples and in a cache."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt.actions import ActionSpace
from diffusers_videogpt.data.batches import WindowDataset, collate
from diffusers_videogpt.data.latents import LatentCache, make_cache_key, write_latent_cache
from diffusers_videogpt.data.sampling import Sampling, Window
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.video_io import read_video, write_video


KEYS, MOVES = ActionSpace(num_actions=3), ActionSpace(action_dim=2)
SAMPLING = Sampling(max_num_frames=3, longest_side=32)
NUM_FRAMES = 7
PRESSED = [-1, 0, 1, 2, -1, 1, 0]
MOVED = [[np.nan, np.nan], [0, 1], [0.5, 0], [1, 1], [2, 0], [3, 1], [4, 0]]


def write_clip(path, num_frames=NUM_FRAMES, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 32, 32, 3), dtype=np.uint8)
    write_video(path, frames, fps=8)


@pytest.fixture
def folder(tmp_path):
    """Two videos with their keys beside them."""
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4")
        np.save(tmp_path / f"{name}.actions.npy", np.array(PRESSED))
    return tmp_path


def told(table):
    return [record.actions.tolist() for record in table]


# Beside the videos


def test_files_beside_the_videos(folder):
    table = VideoTable.from_folder(folder, SAMPLING, actions=KEYS)
    assert told(table) == [PRESSED, PRESSED] and table[0].actions.dtype == np.int64
    (folder / "b.actions.npy").unlink()
    (folder / "b.actions.csv").write_text("key\n" + "\n".join(map(str, PRESSED)) + "\n")
    assert told(VideoTable.from_folder(folder, SAMPLING, actions=KEYS)) == [PRESSED, PRESSED]
    # A blank line above the names, in the encoding of another program.
    (folder / "b.actions.csv").write_bytes(("\nkey\n" + "\n".join(map(str, PRESSED)) + "\n").encode("utf-16"))
    assert told(VideoTable.from_folder(folder, SAMPLING, actions=KEYS)) == [PRESSED, PRESSED]
    for name in ("a", "b"):
        (folder / f"{name}.actions.npy").unlink(missing_ok=True)
        rows = "".join(f"{x},{y}\n" for x, y in MOVED)
        (folder / f"{name}.actions.csv").write_text("x,y\n" + rows)
    table = VideoTable.from_folder(folder, SAMPLING, actions=MOVES)
    np.testing.assert_array_equal(table[1].actions, np.array(MOVED, dtype=np.float32))


def test_actions_are_read_only_where_they_are_asked_for(folder):
    (folder / "a.actions.npy").write_bytes(b"no numbers")
    table = VideoTable.from_folder(folder, SAMPLING)
    assert [record.actions for record in table] == [None, None]
    assert "actions" not in WindowDataset(table, 0)[0, 0]


@pytest.mark.parametrize(
    "space, values, message",
    [
        (KEYS, PRESSED[:-1], r"a\.mp4 \(a\.actions\.npy\): 7 frames have actions of shape \[6\]"),
        (KEYS, [*PRESSED[:-1], 3], r"a\.mp4 .*action 3 at 6 is not in 0\.\.2"),
        (KEYS, [*PRESSED[:-1], -2], "action -2 at 6"),
        (KEYS, [*map(float, PRESSED[:-1]), np.nan], r"a\.mp4 .*whole numbers"),
        (MOVES, MOVED[:-1], r"a\.mp4 .*7 frames have actions of shape \[6, 2\]"),
        (MOVES, [*MOVED[:-1], [np.nan, 1]], r"a\.mp4 .*action \[nan, 1\.0\] at 6 has NaN"),
        (MOVES, [*MOVED[:-1], [np.inf, 1]], "has NaN or infinite"),
        (MOVES, PRESSED, r"a\.mp4 .*an action is 2 numbers"),
    ],
)
def test_wrong_actions_are_refused_by_the_name_of_their_video(folder, space, values, message):
    np.save(folder / "a.actions.npy", np.array(values))
    with pytest.raises(ValueError, match=message):
        VideoTable.from_folder(folder, SAMPLING, actions=space)


@pytest.mark.parametrize(
    "content, message",
    [
        ("key\n0\nx\n", r"a\.actions\.csv: the actions cannot be read \(line 3 is 'x', not whole numbers"),
        ("0\n1.5\n", "line 2 is '1.5', not whole numbers"),
        ("", r"a\.mp4 .*whole numbers"),
    ],
)
def test_wrong_tables_of_actions(folder, content, message):
    (folder / "a.actions.npy").unlink()
    (folder / "a.actions.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        VideoTable.from_folder(folder, SAMPLING, actions=KEYS)


def test_pickles_and_missing_files(folder):
    np.save(folder / "a.actions.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.actions\.npy: the actions cannot be read"):
        VideoTable.from_folder(folder, SAMPLING, actions=KEYS)
    (folder / "a.actions.npy").unlink()
    with pytest.raises(ValueError, match=r"a\.mp4 has no actions: put them beside it as a\.actions\.npy or"):
        VideoTable.from_folder(folder, SAMPLING, actions=KEYS)


# Tables and datasets


def test_columns_of_tables(folder):
    rows = [{"video": "a.mp4", "keys": PRESSED}, {"video": "b.mp4", "keys": "b.actions.npy"}]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.csv").write_text(f'video,keys\na.mp4,"{PRESSED}"\nb.mp4,b.actions.npy\n')
    for name in ("t.jsonl", "t.csv"):
        table = VideoTable.from_table(folder / name, SAMPLING, actions=KEYS, action_column="keys")
        assert told(table) == [PRESSED, PRESSED]
    assert told(VideoTable.from_table(folder / "t.csv", SAMPLING, actions=KEYS)) == [PRESSED, PRESSED]
    with pytest.raises(ValueError, match="row 1 has no column 'moves'"):
        VideoTable.from_table(folder / "t.csv", SAMPLING, actions=KEYS, action_column="moves")
    (folder / "t.csv").write_text('video,keys\na.mp4,"[0, 1"\n')
    with pytest.raises(ValueError, match=r"a\.mp4: its actions are no list in JSON"):
        VideoTable.from_table(folder / "t.csv", SAMPLING, actions=KEYS, action_column="keys")


def test_column_of_a_dataset(folder):
    rows = {"video": [str(folder / "a.mp4"), str(folder / "b.mp4")], "moves": [MOVED, MOVED]}
    Dataset.from_dict(rows).to_parquet(folder / "data" / "train.parquet")
    table = VideoTable.from_dataset(folder / "data", SAMPLING, actions=MOVES, action_column="moves")
    np.testing.assert_array_equal(table[1].actions, np.array(MOVED, dtype=np.float32))


# LeRobot


LENGTHS = [7, 5]


def write_lerobot(root, version, actions):
    """Two episodes, in the layout of a format: `actions` are those of their rows, one after the other."""
    camera = "observation.images.top"
    features = {camera: {"dtype": "video"}, "action": {"dtype": "float32"}, "episode_index": {"dtype": "int64"}}
    paths = {
        "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    info = {"codebase_version": version, "fps": 8, "features": features, "video_path": paths[version]}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info | {"chunks_size": 1000}))
    rows = {
        "episode_index": [episode for episode, length in enumerate(LENGTHS) for _ in range(length)],
        "frame_index": [frame for length in LENGTHS for frame in range(length)],
        "action": actions,
    }
    tasks = [["push the ball"], ["stop", "wait"]]
    if version == "v2.1":
        for episode, length in enumerate(LENGTHS):
            own = [row for row, of in enumerate(rows["episode_index"]) if of == episode]
            part = {name: [values[row] for row in reversed(own)] for name, values in rows.items()}  # in any order
            Dataset.from_dict(part).to_parquet(root / "data" / "chunk-000" / f"episode_{episode:06d}.parquet")
            write_clip(root / "videos" / "chunk-000" / camera / f"episode_{episode:06d}.mp4", length, seed=episode)
        lines = [{"episode_index": i, "tasks": tasks[i], "length": LENGTHS[i]} for i in range(2)]
        (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return root
    Dataset.from_dict(rows).to_parquet(root / "data" / "chunk-000" / "file-000.parquet")
    starts = {f"videos/{camera}/chunk_index": [0, 0], f"videos/{camera}/file_index": [0, 0]}
    starts |= {f"videos/{camera}/from_timestamp": [0.0, LENGTHS[0] / 8]}
    episodes = Dataset.from_dict({"episode_index": [0, 1], "tasks": tasks, **starts})
    episodes.to_parquet(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    write_clip(root / "videos" / camera / "chunk-000" / "file-000.mp4", sum(LENGTHS))
    return root


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_dataset(tmp_path, version):
    """The action of a row leads to the next frame; episodes of one file are read apart."""
    keys = [0, 1, 2, 0, 1, 2, 0, 2, 2, 1, 1, 0]
    root = write_lerobot(tmp_path / "set", version, keys)
    table = VideoTable.from_lerobot(root, SAMPLING, actions=KEYS)
    assert told(table) == [[-1, 0, 1, 2, 0, 1, 2], [-1, 2, 2, 1, 1]]
    assert [record.caption for record in table] == ["push the ball", "stop, wait"]
    assert [record.id for record in table] == ["episode 0", "episode 1"]
    assert [info.num_frames for info in table.infos] == LENGTHS and table[0].digest != table[1].digest
    files = sorted((root / "videos").rglob("*.mp4"))
    frames = np.concatenate([read_video(path).frames for path in files])
    for window in (Window(0, 1, 3), Window(2, 1, 3)):
        start = LENGTHS[0] + window.start
        np.testing.assert_array_equal(table.read(1, window), frames[start : start + 3])
    assert table.read_actions(1, Window(2, 1, 3)).tolist() == [2, 1, 1]


def test_lerobot_moves(tmp_path):
    moves = [[float(i), -float(i)] for i in range(12)]
    table = VideoTable.from_lerobot(write_lerobot(tmp_path / "set", "v3.0", moves), SAMPLING, actions=MOVES)
    assert np.isnan(table[1].actions[0]).all() and table[1].actions[1:].tolist() == moves[7:11]


@pytest.mark.parametrize("fps", [None, 4.0])
def test_last_episode_of_a_file_and_frame_rates(tmp_path, fps):
    root = write_lerobot(tmp_path / "set", "v3.0", list(range(12)))
    sampling = Sampling(max_num_frames=3, longest_side=32, fps=fps, frame_interval=(1, 1) if fps else (2, 2))
    table = VideoTable.from_lerobot(root, sampling, actions=ActionSpace(num_actions=12))
    frames = read_video(next((root / "videos").rglob("*.mp4"))).frames
    window = sampling.window_at(table.infos[1], interval_share=0.0, start_share=0.0)
    np.testing.assert_array_equal(table.read(1, window), frames[[7, 9, 11]])
    assert table.read_actions(1, window).tolist() == [-1, 8, 10]


def test_what_is_no_lerobot_dataset(tmp_path):
    root = write_lerobot(tmp_path / "set", "v3.0", [0] * 12)
    info = json.loads((root / "meta" / "info.json").read_text())
    looking = {"sampling": SAMPLING, "actions": KEYS}
    with pytest.raises(ValueError, match="has no column 'keys': give --action_column, one of"):
        VideoTable.from_lerobot(root, **looking, action_column="keys")
    with pytest.raises(ValueError, match="has no camera 'left': give --lerobot_camera, one of observation.images.top"):
        VideoTable.from_lerobot(root, **looking, camera="left")
    for change, message in (
        ({"codebase_version": "v1.6"}, "format v1.6: convert it to"),
        ({"features": info["features"] | {"left": {"dtype": "video"}}}, "has several cameras"),
        ({"video_path": None}, "has no video_path"),
    ):
        (root / "meta" / "info.json").write_text(json.dumps(info | change))
        with pytest.raises(ValueError, match=message):
            VideoTable.from_lerobot(root, **looking)
    with pytest.raises(ValueError, match="is no LeRobot dataset: it has no meta/info.json"):
        VideoTable.from_lerobot(tmp_path, **looking)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"features": ["a"]}, r"`features` must map names to objects, got \['a'\]"),
        ({"features": {"c": "video"}}, "`features`: 'c' must be an object with a `dtype`, got 'video'"),
        ({"fps": [30]}, r"`fps` must be a finite number above 0, got \[30\]"),
        ({"fps": -8}, "`fps` must be a finite number above 0, got -8"),
        ({"chunks_size": "many"}, "`chunks_size` must be a whole number .* got 'many'"),
        ({"chunks_size": 0}, "`chunks_size` must be a whole number .* got 0"),
        ({"video_path": ["a"]}, r"`video_path` must be text, got \['a'\]"),
        ({"video_path": "{camera}/{0}.mp4"}, "has the placeholder 'camera', and only .*video_key.* can be filled in"),
        ({"video_path": "{video_key.__class__}.mp4"}, "has the placeholder 'video_key.__class__'"),
        ({"video_path": "{video_key:>1000000000}.mp4"}, "wants 'video_key' in a form that no file's name has"),
        ({"video_path": "{video_key!r}.mp4"}, "wants 'video_key' in a form that no file's name has"),
        ({"video_path": "{video_key"}, "`video_path` '{video_key' cannot be filled in"),
        ({"video_path": "../../x.mp4"}, r"`video_path` leads out of the dataset .*'../../x.mp4'"),
        ({"video_path": "/etc/{video_key}.mp4"}, "`video_path` leads out of the dataset"),
        ({"features": {"../..": {"dtype": "video"}}, "video_path": "{video_key}/x.mp4"}, "leads out of the dataset"),
    ],
    ids=str,
)
def test_a_lerobot_info_with_values_that_are_none(tmp_path, version, change, told):
    """One line that names the file and what was wrong in it."""
    root = write_lerobot(tmp_path / "set", version, [0] * 12)
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if "leads" in told and "features" in change and version == "v3.0":
        places = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        found = Dataset.from_parquet(str(places)).to_dict()
        camera = "videos/observation.images.top"
        Dataset.from_dict({x.replace(camera, "videos/../.."): y for x, y in found.items()}).to_parquet(places)
    with pytest.raises(ValueError, match=told) as refused:
        VideoTable.from_lerobot(root, SAMPLING)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_a_lerobot_dataset_whose_tables_are_damaged(tmp_path):
    root = write_lerobot(tmp_path / "v2", "v2.1", [0] * 12)
    (root / "meta" / "episodes.jsonl").write_text('{"episode_index": "first"}\n')
    with pytest.raises(ValueError, match=r"episodes.jsonl: episode_index` must be a whole number .* got 'first'"):
        VideoTable.from_lerobot(root, SAMPLING)
    root = write_lerobot(tmp_path / "v3", "v3.0", [0] * 12)
    data, places = (root / x / "chunk-000" / "file-000.parquet" for x in ("data", "meta/episodes"))
    kept = data.read_bytes(), Dataset.from_parquet(str(places)).to_dict()
    for damage in (kept[0][:100], b"", b"no parquet"):
        data.write_bytes(damage)
        with pytest.raises(ValueError, match=r"file-000.parquet is no whole parquet file, or has none of its columns"):
            VideoTable.from_lerobot(root, SAMPLING)
    Dataset.from_dict({"episode_index": [0]}).to_parquet(data)
    with pytest.raises(
        ValueError, match="is no whole parquet file, or has none of its columns episode_index, frame_index"
    ):
        VideoTable.from_lerobot(root, SAMPLING)
    Dataset.from_dict({"episode_index": [0, None], "frame_index": [0, 1]}).to_parquet(data)
    with pytest.raises(ValueError, match="data: episode_index` must be a whole number .* got None"):
        VideoTable.from_lerobot(root, SAMPLING)
    data.write_bytes(kept[0])
    start = "videos/observation.images.top/from_timestamp"
    Dataset.from_dict(kept[1] | {start: [0.0, None]}).to_parquet(places)
    with pytest.raises(ValueError, match="from_timestamp` must be a finite number, got None"):
        VideoTable.from_lerobot(root, SAMPLING)


def test_an_episode_that_is_not_in_its_file(tmp_path):
    root = write_lerobot(tmp_path / "set", "v3.0", [0] * 12)
    write_clip(next((root / "videos").rglob("*.mp4")), 9)
    table = VideoTable.from_lerobot(root, SAMPLING, actions=KEYS, max_bad_fraction=0.5)
    assert len(table) == 1 and "an episode of 5 frames from 0.875 s on is not in it" in table.dropped["episode 1"]


# Samples and caches


def test_samples_have_what_was_done_between_their_frames(folder):
    sampling = Sampling(max_num_frames=3, frame_interval=(2, 2), longest_side=32)
    table = VideoTable.from_folder(folder, sampling, actions=KEYS)
    assert table.read_actions(0, Window(2, 2, 3)).tolist() == [1, 2, 0]  # of 0 1 | 2 - | 1 0
    dataset = WindowDataset(table, 0)
    batch = collate([dataset[0, 0], dataset[1, 3]])
    assert batch["actions"].shape == (2, 3) and batch["actions"].dtype == torch.int64
    for row, (index, draw) in enumerate(((0, 0), (1, 3))):
        expected = table.read_actions(index, table.draw_window(index, draw, seed=0))
        assert batch["actions"][row].tolist() == expected.tolist()


@pytest.mark.parametrize("space", [KEYS, MOVES], ids=["keys", "moves"])
def test_a_cache_keeps_the_actions_of_its_windows(folder, tmp_path, space):
    if space is MOVES:
        for name in ("a", "b"):
            np.save(folder / f"{name}.actions.npy", np.array(MOVED))
    vae, cache = tiny_autoencoder_of(), tmp_path / "cache"
    table = VideoTable.from_folder(folder, SAMPLING, actions=space)
    key = make_cache_key(vae, SAMPLING, seed=0, actions=space)
    write_latent_cache(cache, table, vae=vae, key=key, num_windows=2)
    written = LatentCache(cache, key)
    for draw in range(4):
        expected = table.read_actions(1, table.draw_window(1, draw % 2, seed=0))
        np.testing.assert_array_equal(written.read_actions(1, draw).numpy(), expected)

    write_latent_cache(cache, table, vae=vae, key=key, num_windows=2)  # nothing to do
    stamp = (cache / "latents-00000.safetensors").stat().st_mtime_ns
    changed = np.load(folder / "a.actions.npy")
    changed[3] = 0
    np.save(folder / "a.actions.npy", changed)
    table = VideoTable.from_folder(folder, SAMPLING, actions=space)
    write_latent_cache(cache, table, vae=vae, key=key, num_windows=2)
    assert (cache / "latents-00000.safetensors").stat().st_mtime_ns != stamp

    without = make_cache_key(vae, SAMPLING, seed=0)
    assert len(LatentCache(cache, without)) == 2  # the actions are left alone
    write_latent_cache(tmp_path / "other", VideoTable.from_folder(folder, SAMPLING), vae=vae, key=without)
    with pytest.raises(ValueError, match=r"made otherwise \(actions\."):
        LatentCache(tmp_path / "other", key)


def test_other_actions_are_other_content(folder):
    before = VideoTable.from_folder(folder, SAMPLING, actions=KEYS).content_hash()
    np.save(folder / "a.actions.npy", np.array([0, *PRESSED[1:]]))
    assert VideoTable.from_folder(folder, SAMPLING, actions=KEYS).content_hash() != before
