"""The index against comparing all vectors by hand; what is computed again and what is not; foreign and damaged indexes."""

import json
import os
import shutil

import pytest
import torch
from run_scripts import make_videos
from text_encoders import WIDTH, make_text_encoder, make_tokenizer

from diffusers_videogpt import VideoGPTForVideoRetrieval, VideoGPTRetrievalPipeline
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.tasks import video_index
from diffusers_videogpt.tasks.video_index import build_index, search_index


pytest.importorskip("faiss")
QUERY = "two blue boxes fall"


@pytest.fixture
def save_model(make_tiny_pipe):
    def save(folder, seed):
        tiny = make_tiny_pipe()
        torch.manual_seed(seed)
        retriever = VideoGPTForVideoRetrieval.from_transformer(tiny.transformer, WIDTH, projection_dim=8)
        sampling = {"max_num_frames": 4, "height": 32, "width": 32}
        parts = (tiny.vae, retriever, make_text_encoder(), make_tokenizer())
        VideoGPTRetrievalPipeline(*parts, sampling).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def model(save_model, tmp_path):
    return save_model(tmp_path / "model", seed=0)


@pytest.fixture
def folder(tmp_path):
    make_videos(tmp_path / "videos/below", 2, seed=1)
    make_videos(tmp_path / "videos", 4)
    (tmp_path / "videos/broken.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


@pytest.fixture
def encoded(monkeypatch):
    """Ids of the videos that were encoded."""
    ids, encode_table = [], VideoGPTRetrievalPipeline.encode_table

    def counted(self, table):
        for index, embed in encode_table(self, table):
            ids.append(table.id(index))
            yield index, embed

    monkeypatch.setattr(VideoGPTRetrievalPipeline, "encode_table", counted)
    return ids


def test_search_finds_what_all_vectors_say(folder, model, tmp_path, capsys):
    main(["index", str(folder), "--model", model, "--output", str(tmp_path / "index")])
    printed = capsys.readouterr().out
    assert "6 videos in" in printed and "1 of 7 videos dropped (1 unreadable)" in printed and "broken.mp4" in printed
    pipe = VideoGPTRetrievalPipeline.from_pretrained(model)
    paths = sorted(path for path in folder.rglob("*.mp4") if path.name != "broken.mp4")
    scores = pipe([QUERY], paths)[0]
    expected = [
        (paths[i].resolve(), pytest.approx(scores[i].item(), abs=1e-5)) for i in scores.argsort(descending=True)
    ]
    hits = search_index(tmp_path / "index", QUERY, top=50)
    assert [(hit.path, hit.score) for hit in hits] == expected and all(hit.is_current for hit in hits)
    main(["search", str(tmp_path / "index"), QUERY, "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [str(hit.path) for hit in hits[:2]]


def test_only_new_and_changed_videos_are_computed(folder, model, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(video_index, "SAVED_EVERY", 2)
    build_index(folder, model, output=tmp_path / "index")
    assert len(encoded) == 6
    before = {hit.path: hit.score for hit in search_index(tmp_path / "index", QUERY, top=6)}
    encoded.clear()
    make_videos(tmp_path / "new", 1, seed=5)
    shutil.copy(tmp_path / "new/32x32-0.mp4", folder / "new.mp4")
    os.utime(folder / "32x32-1.mp4", ns=(1, 1))
    (folder / "32x32-2.mp4").unlink()
    stale = {hit.path.name for hit in search_index(tmp_path / "index", QUERY, top=6) if not hit.is_current}
    assert stale == {"32x32-1.mp4", "32x32-2.mp4"}
    report = build_index(folder, model, output=tmp_path / "index")
    assert sorted(encoded) == ["32x32-1.mp4", "new.mp4"]
    assert (report.num_videos, report.num_kept) == (6, 4)
    after = {hit.path: hit.score for hit in search_index(tmp_path / "index", QUERY, top=6)}
    assert {path.name for path in after.keys() - before.keys()} == {"new.mp4"}
    assert all(after[path] == pytest.approx(before[path], abs=1e-6) for path in after.keys() & before.keys())
    (folder / "new.mp4").unlink()
    encoded.clear()
    assert build_index(folder, model, output=tmp_path / "index").num_videos == 5 and not encoded


def test_killed_run_goes_on(folder, model, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(video_index, "SAVED_EVERY", 2)
    write, calls = video_index._write, []

    def killed_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*args, **kwargs)

    monkeypatch.setattr(video_index, "_write", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, model, output=tmp_path / "index")
    encoded.clear()
    assert build_index(folder, model, output=tmp_path / "index").num_kept == 2 and len(encoded) == 4


def test_foreign_stale_and_damaged_indexes(folder, model, tmp_path, save_model):
    index = tmp_path / "index"
    build_index(folder, model, output=index)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="index by another model"):
        build_index(folder, other, output=index)
    with pytest.raises(ValueError, match="index of another folder"):
        build_index(folder / "below", model, output=index)
    with pytest.raises(ValueError, match="made by another model than"):
        search_index(index, QUERY, model=other)
    with pytest.raises(ValueError, match="none that is empty"):
        search_index(index, "")
    for foreign in (folder, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is no index of videos"):
            search_index(foreign, QUERY)
    with pytest.raises(ValueError, match="is no index of videos"):
        build_index(folder, model, output=folder)

    shutil.move(model, tmp_path / "moved")
    with pytest.raises(SystemExit, match="videogpt search: "):
        main(["search", str(index), QUERY])
    assert len(search_index(index, QUERY, model=str(tmp_path / "moved"))) == 5
    (index / "videos.faiss").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not the file that belongs to this index"):
        search_index(index, QUERY, model=str(tmp_path / "moved"))
    notes = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(notes | {"folder": ["a"]}))
    with pytest.raises(ValueError, match="is no index of videos"):
        search_index(index, QUERY)
    assert notes["num_videos"] == 6 and notes["folder"] == str(folder.resolve())


def test_folder_without_videos(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No usable video"):
        build_index(tmp_path / "empty", model, output=tmp_path / "index")
