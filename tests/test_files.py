"""Files are whole or not there; what is read as JSON is JSON; names stay inside their folder; hashes follow the content."""

import hashlib
import io
import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from diffusers_videogpt import files
from diffusers_videogpt.files import (
    Store,
    hash_bytes,
    hash_file,
    hash_json,
    hash_of,
    path_inside,
    plain_cell,
    read_json,
    write_json,
    write_safetensors_header,
    written_whole,
)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "video.mp4"
    with written_whole(path) as unfinished:
        unfinished.write_bytes(b"half")
        assert not path.exists() and unfinished.parent == path.parent and unfinished.suffix == ".mp4"
    assert path.read_bytes() == b"half" and names_in(tmp_path) == ["new/video.mp4"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), written_whole(path) as unfinished:
        unfinished.write_text("{")
        raise RuntimeError
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} and names_in(tmp_path) == ["scores.json"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    wait, replace = files.wait_for_disk, files.os.replace
    monkeypatch.setattr(files, "wait_for_disk", lambda path: (order.append("disk"), wait(path)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (order.append("name"), replace(*paths)))
    write_json(tmp_path / "a.json", {})
    assert order == ["disk", "name"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no JSON"),
        (b"{'a': 1}", "no JSON"),
        (b'{"a": 1', "no JSON"),
        (b'{"a": "\xff"}', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1, 2]", "is a list, not an object"),
        (b"3", "is a int, not an object"),
        (b"null", "is a NoneType, not an object"),
    ],
    ids=["empty", "single quotes", "cut", "no UTF-8", "deep", "list", "number", "null"],
)
def test_json_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"ä": [1, 2.5, None]}, indent=2)
    assert read_json(path) == {"ä": [1, 2.5, None]} and path.read_text().endswith("}\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert read_json(path) == {"ä": [1, 2.5, None]}
    write_json(path, [1])
    assert read_json(path, kind=list) == [1]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", "..", "a\0b"])
def test_names_that_lead_out_of_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of the folder"):
        path_inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x", "a/b.mp4", "..x", "x..", "a b"])
def test_names_within_their_folder(tmp_path, name):
    assert path_inside(tmp_path, name) == tmp_path / name


def test_cells_are_no_formulas():
    for formula in ("=1+1", "+1", "-1", "@a", "\t=1", "\rx"):
        assert plain_cell(formula) == f"'{formula}" and plain_cell(f"a{formula}") == f"a{formula}"
    assert [plain_cell(x) for x in ("run", "", "a=b", -1, 2.5, None, [-1])] == ["run", "", "a=b", -1, 2.5, None, [-1]]


def test_hashes_are_sha256(tmp_path):
    content = bytes(range(256)) * 10_000  # more than is read at once
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hash_bytes(content) == hashlib.sha256(content).hexdigest()
    assert hash_json({"b": 1, "a": (1, 2)}) == hashlib.sha256(b'{"a": [1, 2], "b": 1}').hexdigest()
    assert hash_json([1]) != hash_json(["1"])
    assert hash_of(1, "a") == hash_json([1, "a"])[:32]


def test_a_header_and_its_bytes_are_a_safetensors_file(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"of": "ä" * 3}}
    with (tmp_path / "a.safetensors").open("wb") as file:
        write_safetensors_header(file, header)
        assert file.tell() % 8 == 0
        file.write(array.tobytes())
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["x"], array)
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"of": "äää"}
    buffer = io.BytesIO()
    write_safetensors_header(buffer, header)
    (length,) = struct.unpack("<Q", buffer.getvalue()[:8])
    assert json.loads(buffer.getvalue()[8:]) == header and length == len(buffer.getvalue()) - 8


def test_a_store_shows_only_finished_files(tmp_path):
    store = Store(tmp_path)
    assert store.load("scores", "key") is None
    store.save("scores", "key", value=[1.5, 2.0])
    assert store.load("scores", "key") == [1.5, 2.0]
    with store.writing(store.videos / "a.mp4") as unfinished:
        unfinished.write_bytes(b"video")
        assert unfinished.suffix == ".mp4" and names_in(store.videos) == []
    assert names_in(store.videos) == ["a.mp4"] and names_in(tmp_path / "cache") == ["scores/key.json"]
