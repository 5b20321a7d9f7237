"""Which classes videos have, and their numbers."""

import pytest

from diffusers_videogpt.tasks.class_to_video import class_names


def test_names_in_order(tmp_path):
    assert class_names(["run", "jump", "run"]) == ["jump", "run"]
    assert class_names(["run", "jump"], tmp_path / "videos.csv") == ["jump", "run"]
    split = tmp_path / "trainlist01.txt"
    assert class_names(["run", "jump"], split) == ["jump", "run"]
    (tmp_path / "classInd.txt").write_text("2 jump\n1 run\n10 swim\n\n")
    assert class_names(["run", "jump"], split) == ["run", "jump", "swim"]
    (tmp_path / "classInd.txt").write_bytes("2 jump  high\r\n1\tApply Eye Makeup\r\n".encode("utf-16"))
    assert class_names(["Apply Eye Makeup"], split) == ["Apply Eye Makeup", "jump  high"]
    (tmp_path / "classInd.txt").write_text("1 run\njump\n")
    with pytest.raises(ValueError, match="classInd.txt: 'jump' is not the number of a class and its name"):
        class_names(["run"], split)


def test_videos_without_a_class(tmp_path):
    with pytest.raises(ValueError, match="1 of 2 videos have no class: put each into a folder"):
        class_names(["run", None])
    (tmp_path / "classInd.txt").write_text("1 run\n")
    with pytest.raises(ValueError, match="does not name jump"):
        class_names(["run", "jump"], tmp_path / "testlist01.txt")
