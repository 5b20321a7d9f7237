"""The page of `videogpt demo`: its work without a browser, then the page in a real one."""

import asyncio
import itertools
import re
import shutil
import socket
import sys
import threading
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from odd_videos import take_decoder_away, write_titled_in_latin_1
from PIL import Image, features

from diffusers_videogpt import BUNDLED_MODEL, VideoGPTPipeline
from diffusers_videogpt.commands.demo_play import MAX_PLAYED, Plays, buttons_of, keys_of, show_frame
from diffusers_videogpt.commands.demo_rollout import (
    MAX_WALKED,
    Limits,
    Rollouts,
    Settings,
    Walk,
    check_upload,
    format_psnr,
    psnr_by_clip,
    read_upload,
    write_views,
)
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.commands.options import STEPS
from diffusers_videogpt.film_strips import GIVEN, NEXT, side_by_side
from diffusers_videogpt.video_io import Video, VideoReadError, read_video, write_video


LIMITS = Limits(megabytes=1, seconds=5, megapixels=1)
SETTINGS = Settings(4, 6, 2, 2, 1.5, seed=3)
VISITOR, OTHER = ("a", "predict"), ("b", "predict")


def noise(num_frames, height=32, width=32):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def write_broken(folder: Path) -> dict[str, str]:
    """Files that must be refused: name → what the message says."""
    (folder / "notes.mp4").write_text("This is no video.\n" * 40)
    (folder / "empty.mp4").touch()
    whole = write_video(folder / "whole.mp4", noise(20), fps=10).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(folder / "long.mp4", np.zeros((6, 32, 32, 3), np.uint8), fps=1)
    Image.new("1", (30000, 30000)).save(folder / "bomb.png")
    return {
        "notes.mp4": "no video that FFmpeg can open",
        "empty.mp4": "is empty (0 bytes)",
        "cut.mp4": "a download that was cut before its index",
        "long.mp4": "is 6 s long, the limit is 5 s",
        "bomb.png": "this picture is far too large",
    }


# Uploads


def test_broken_uploads_are_refused_in_words(tmp_path, make_tiny_pipe):
    pipe = make_tiny_pipe()
    said = write_broken(tmp_path)
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4 and so on")
    said["paper.pdf"] = "give a whole MP4"
    (tmp_path / "heavy.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes() + bytes(2_000_000))
    said["heavy.mp4"] = "has 2 MB, the limit is 1 MB"
    Image.new("RGB", (1200, 1000)).save(tmp_path / "wide.png")
    said["wide.png"] = "has 1 megapixels (1200 × 1000)"
    stills = [
        Image.new("RGB", (400, 400), color) for color in ("red", "green", "blue", "teal", "gold", "gray", "pink")
    ]
    stills[0].save(tmp_path / "many.webp", save_all=True, append_images=stills[1:], lossless=True)
    said["many.webp"] = "has 1 megapixels (400 × 400)"
    write_video(tmp_path / "thin.mp4", noise(2, 600, 16), fps=10)
    said["thin.mp4"] = "frames of 16 × 600 are too small or too narrow"
    (tmp_path / "half.png").write_bytes((tmp_path / "wide.png").read_bytes()[:60])
    said["half.png"] = "half.png"
    with wave.open(str(tmp_path / "sound.avi"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(800))
    said["sound.avi"] = "no video that FFmpeg can open"
    said["gone.mp4"] = "no longer here"
    for name, message in said.items():
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            read_upload(tmp_path / name, pipe, settings=SETTINGS, limits=LIMITS)
        assert name in str(caught.value) and str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match="choose a file"):
        read_upload(None, pipe, settings=SETTINGS, limits=LIMITS)
    assert check_upload(tmp_path / "whole.mp4", LIMITS) == (32, 32)


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path):
    with av.open(str(tmp_path / "secret.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for frame in noise(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
    with av.open(str(playlist)) as container:
        assert container.format.name == "hls"  # left alone, FFmpeg follows it
    with pytest.raises(VideoReadError, match="no video that FFmpeg can open"):
        check_upload(playlist, LIMITS)
    assert check_upload(tmp_path / "secret.ts", LIMITS) == (32, 32)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_uploads_are_opened_as_every_reader_opens_them(tmp_path, make_tiny_pipe, suffix):
    """A title that is not UTF-8 is no reason to refuse a video; a codec without a decoder is, in the reader's words."""
    path = write_titled_in_latin_1(tmp_path / f"film.{suffix}")
    assert check_upload(path, LIMITS) == (48, 32)
    assert read_upload(path, make_tiny_pipe(), settings=SETTINGS, limits=LIMITS).frames.shape == (4, 16, 32, 3)
    take_decoder_away(path)
    with pytest.raises(VideoReadError, match=f"^film.{suffix}: this FFmpeg has no decoder"):
        check_upload(path, LIMITS)


def test_pictures_are_looked_at_as_they_are_read(tmp_path, make_tiny_pipe):
    """What Pillow alone reads right is not asked of FFmpeg."""
    path = tmp_path / "clear.avif"
    if "avif" not in features.modules or not features.check("avif"):
        pytest.skip("this Pillow does not write AVIF")
    Image.new("RGBA", (48, 32), (0, 0, 255, 0)).save(path)
    assert (read_upload(path, make_tiny_pipe(), settings=SETTINGS, limits=LIMITS).frames == 255).all()


def test_names_of_uploads_do_not_steer_a_terminal(tmp_path):
    for name, content in (
        ("a\x1b[2J.mp4", b""),
        ("b\x1b[2J.mp4", b"no video"),
        ("c\x1b[2J.png", b"\x89PNG\r\n\x1a\n"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            check_upload(tmp_path / name, LIMITS)
        assert str(caught.value).startswith(f"{name[0]}\\x1b[2J"), caught.value


def test_short_uploads_give_what_they_have(tmp_path, make_tiny_pipe):
    pipe = make_tiny_pipe()
    one = write_video(tmp_path / "one.mp4", noise(1, 64, 64), fps=10)
    assert read_upload(one, pipe, settings=SETTINGS, limits=LIMITS).frames.shape == (1, 32, 32, 3)
    Image.new("RGB", (100, 80), "teal").save(tmp_path / "picture.jpg")
    picture = read_upload(tmp_path / "picture.jpg", pipe, settings=SETTINGS, limits=LIMITS)
    assert picture.frames.shape == (1, 16, 32, 3) and picture.fps is None
    long = write_video(tmp_path / "long.mp4", noise(40), fps=20)
    assert len(read_upload(long, pipe, settings=SETTINGS, limits=LIMITS).frames) == 4 + 6
    slow = read_upload(long, pipe, settings=Settings(4, 6, 2, 2, 1.5, 0, fps=4), limits=LIMITS)
    assert slow.fps == 4 and len(slow.frames) == 8


# Predicting


def test_clips_are_those_of_the_pipeline(make_tiny_pipe):
    pipe = make_tiny_pipe()
    given = noise(4)
    parts = list(Rollouts(pipe).clips(VISITOR, given, settings=SETTINGS))
    assert [len(part) for part in parts] == [2, 4, 6]
    expected = pipe(
        video=given,
        num_frames=6,
        num_inference_steps=2,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).frames[0]
    np.testing.assert_allclose(parts[-1], expected * 255, atol=1)
    np.testing.assert_array_equal(parts[0], parts[-1][:2])


def test_a_rollout_ends_when_interrupted_or_another_begins(make_tiny_pipe):
    rollouts = Rollouts(make_tiny_pipe())
    given = noise(3)
    clips = rollouts.clips(VISITOR, given, settings=SETTINGS)
    next(clips)
    rollouts.interrupt(OTHER)  # not theirs
    assert len(next(clips)) == 4
    rollouts.interrupt(VISITOR)
    assert list(clips) == []
    left = rollouts.clips(VISITOR, given, settings=SETTINGS)
    next(left)
    assert len(list(rollouts.clips(OTHER, given, settings=SETTINGS))) == 3
    assert list(left) == []
    rollouts.close()
    assert len(list(rollouts.clips(OTHER, given, settings=SETTINGS))) == 3


def test_a_walk_takes_frames_of_ones_own(make_tiny_pipe):
    rollouts = Rollouts(make_tiny_pipe())
    begun = rollouts.walk_on(VISITOR, Walk(noise(4), 4, 10, SETTINGS))
    assert len(begun.frames) == 6 and begun.num_given == 4
    kept = rollouts.walk_on(VISITOR, begun)
    np.testing.assert_array_equal(kept.frames[:6], begun.frames)
    assert len(kept.frames) == 8

    own = np.full((64, 96, 3), 250, np.uint8)
    rollouts.interrupt(VISITOR)
    rollouts.walk_on(VISITOR, Walk(noise(4), 4, 10, SETTINGS))
    changed = rollouts.walk_on(VISITOR, begun, own_frame=own)
    assert (changed.frames[5] == 250).all() and len(changed.frames) == 8
    np.testing.assert_array_equal(changed.frames[:5], begun.frames[:5])
    assert np.abs(changed.frames[6:].astype(int) - kept.frames[6:]).mean() > 1

    # The model was another's meanwhile: the walk goes on from the frames that were shown.
    list(rollouts.clips(OTHER, noise(2), settings=SETTINGS))
    assert len(rollouts.walk_on(VISITOR, changed).frames) == 10
    rollouts.close()


def test_a_walk_forgets_its_oldest_frames(make_tiny_pipe):
    rollouts = Rollouts(make_tiny_pipe())
    frames = noise(MAX_WALKED, 16, 16)
    walk = rollouts.walk_on(VISITOR, Walk(frames, 3, 10, SETTINGS))
    assert len(walk.frames) == MAX_WALKED and walk.num_given == 1
    np.testing.assert_array_equal(walk.frames[:-2], frames[2:])
    rollouts.close()


# Playing


def test_a_play_goes_on_until_paused(steered_pipe, monkeypatch):
    monkeypatch.setattr("diffusers_videogpt.commands.demo_play.FPS", 1000)
    rollouts = Rollouts(steered_pipe)
    plays = Plays(rollouts)
    with pytest.raises(ValueError, match="no play yet"):
        next(plays.run("a"))
    rollouts.walk_on(VISITOR, Walk(noise(4), 4, 10, SETTINGS))  # the model is in another's use until the play begins
    play = plays.begin("a", noise(4), seed=0, num_inference_steps=1)
    steps = plays.run("a")
    next(steps)
    plays.hold("a", 2)
    plays.hold("a", 0)  # let go before the next step: the press counts
    plays.hold("nobody", 1)
    next(steps)
    next(steps)
    plays.hold("a", 3)
    for _ in range(2):
        next(steps)
    plays.pause("a")
    assert list(steps) == [] and play.player.actions == [0, 2, 0, 3, 3]

    frames = play.player.frames
    next(plays.run("a", at=1))  # goes on from an earlier frame, which drops the rest
    assert play.player.actions == [0, 3]
    np.testing.assert_array_equal(play.player.frames[: 4 + 1], frames[: 4 + 1])
    plays.leave("a")
    with pytest.raises(ValueError, match="no play yet"):
        plays.of("a")
    rollouts.close()


def test_a_play_ends_by_itself_so_that_others_get_the_model(steered_pipe, monkeypatch):
    monkeypatch.setattr("diffusers_videogpt.commands.demo_play.FPS", 1000)
    monkeypatch.setattr("diffusers_videogpt.commands.demo_play.MAX_PLAYED", 3)
    plays = Plays(Rollouts(steered_pipe))
    plays.begin("a", noise(2), seed=0, num_inference_steps=1)
    assert len(list(plays.run("a"))) == 3 < MAX_PLAYED


def test_buttons_and_keys(make_tiny_pipe, make_tiny_transformer, steered_pipe):
    plays = Plays(Rollouts(steered_pipe))
    assert [label for label, _, _ in buttons_of(plays)] == ["stay", "←", "→", "↑", "↓"]
    keys = keys_of(plays)
    assert keys["ArrowLeft"] == keys["1"] == "act_1" and keys["ArrowDown"] == keys["4"] == "act_4"
    assert keys["0"] == "act_idle"
    pipe = make_tiny_pipe()
    pipe.register_modules(transformer=make_tiny_transformer(num_actions=2))
    plays = Plays(Rollouts(pipe))
    assert buttons_of(plays) == [("stay", "act_idle", -1), ("0", "act_0", 0), ("1", "act_1", 1)]
    assert keys_of(plays) == {"0": "act_0", "1": "act_1"}
    play = plays.begin("a", noise(2), seed=0, num_inference_steps=1)
    assert 'data-step="0" data-action="-1"' in show_frame(play.player)


# Showing


def test_psnr_by_clip():
    truth = np.zeros((3, 4, 4, 3), np.uint8)
    predicted = np.full((5, 4, 4, 3), 51, np.uint8)  # a fifth of the range: 20 log10 5 dB
    scores = psnr_by_clip(predicted, truth, last_given=truth[0], frames_per_clip=2)
    assert len(scores) == 2
    np.testing.assert_allclose(scores, [(20 * np.log10(5), 100)] * 2)
    assert "| clip 2 | 14.0 dB | 100.0 dB |" in format_psnr(scores)
    assert format_psnr(psnr_by_clip(predicted, truth[:0], last_given=truth[0], frames_per_clip=2)) == ""


def test_videos_side_by_side(tmp_path):
    frames = noise(4)
    beside = side_by_side({"truth": frames[:3], "prediction": frames}, num_given=2, preview_side=256, gap=8)
    assert beside.shape == (4, 28 + 256, 256 + 8 + 256, 3)
    assert tuple(beside[1, 0, 0]) == GIVEN and tuple(beside[2, 0, -1]) == NEXT
    np.testing.assert_array_equal(beside[1, 28 : 28 + 256 : 8, :256:8], frames[1])
    assert (beside[3, 28:, :256] == 235).all()  # the truth has ended

    video = Video(frames, np.arange(4) / 10, 10.0, None)
    strip, *others = write_views(tmp_path, "mine", video=video, num_given=2, predicted=frames[:0])
    assert Image.open(strip).width > 0 and others == [None, None]
    _, comparison, kept = write_views(tmp_path, "mine", video=video, num_given=2, predicted=frames[:1])
    assert Path(kept).name == "mine_prediction.mp4"
    assert len(read_video(kept).frames) == len(read_video(comparison).frames) == 3


# The page


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=re.escape('pip install ".[demo]"')):
        main(["demo"])


HOSTS = {
    "localhost:7860": True,
    "127.0.0.1": True,
    "[::1]:7860": True,
    "192.168.0.9:7860": True,
    "Film.Example:80": True,  # allowed by --name
    "rebound.example:80": False,
    "film.example.rebound.example": False,
    "": False,
}


@pytest.mark.parametrize("host", [*HOSTS, None])
def test_the_page_is_served_under_known_names_alone(host):
    """A page of another site, whose name was made to lead here, reads nothing; neither by HTTP nor by a socket."""
    pytest.importorskip("gradio", reason='needs pip install ".[demo]"')
    from diffusers_videogpt.commands.demo_page import OnlyTheseNames

    sent = []

    async def page(scope, receive, send):
        sent.append("the page")

    async def send(message):
        sent.append(message.get("status", message.get("code")))

    headers = [] if host is None else [(b"host", host.encode())]
    for kind in ("http", "websocket"):
        asyncio.run(OnlyTheseNames(page, ["film.example"])({"type": kind, "headers": headers}, None, send))
    assert sent == (["the page"] * 2 if HOSTS.get(host) else [403, None, 1008])


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        names = ("chromium", "chromium-browser", "google-chrome")
        found = [path for path in map(shutil.which, names) if path]
        found += [path for path in [driver.chromium.executable_path] if Path(path).is_file()]
        if not found:
            pytest.skip("needs Chromium: from the system's packages, or by `playwright install chromium`")
        with driver.chromium.launch(executable_path=found[0], args=["--no-sandbox"]) as chromium:
            yield chromium


def test_the_page_on_a_phone(browser, tmp_path, make_tiny_pipe):
    """The video and the button are on the first screen, and nothing is wider than it; settings are behind."""
    pytest.importorskip("gradio", reason='needs pip install ".[demo]"')
    from diffusers_videogpt.commands.demo_page import running_page

    with running_page(make_tiny_pipe(), LIMITS) as url:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("#status").get_by_text("Press").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        upload, run = (page.locator(name).bounding_box() for name in ("#upload", "#run"))
        assert 0 <= upload["y"] < run["y"] and run["y"] + run["height"] <= 844
        steps = page.get_by_label("number input for Steps per clip")
        assert not steps.is_visible()
        page.click("#settings button")
        steps.wait_for()
        assert steps.input_value() == str(STEPS)
        settings = page.locator("#settings").bounding_box()
        assert settings["y"] > page.locator("#run").bounding_box()["y"]


def test_playing_in_a_browser(browser, tmp_path, steered_pipe):
    """Arrow keys steer, frames come as they are computed, an earlier frame is gone back to, and the clip is saved."""
    pytest.importorskip("gradio", reason='needs pip install ".[demo]"')
    from diffusers_videogpt.commands.demo_page import running_page

    with running_page(steered_pipe, LIMITS) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("#status").get_by_text("Press").wait_for()
        page.get_by_role("tab", name="Play").click()

        def wait_for(condition: str):
            page.wait_for_function(
                f"() => {{ const x = document.querySelector('img.played'); return x && ({condition}); }}"
            )

        def step() -> int:
            return int(page.locator("img.played").get_attribute("data-step"))

        page.click("#play_begin")
        wait_for("+x.dataset.step > 2")  # goes on by itself
        for key, action in (("ArrowLeft", 1), ("ArrowUp", 3)):
            before = step()
            page.keyboard.down(key)
            wait_for(f"x.dataset.action == {action}")
            assert step() - before < 24  # the page is measured on an idle machine, this one may be busy
            page.keyboard.up(key)
            wait_for("x.dataset.action == 0")
        page.click("#act_4")  # a button goes on until another is pressed
        wait_for("x.dataset.action == 4")
        page.click("#play_pause")
        page.locator("#play_status").get_by_text("Paused after step").wait_for()
        last = int(re.search(r"\d+", page.inner_text("#play_status"))[0])
        assert step() == last

        with page.expect_download() as download:
            page.click("#play_save")
        seen = read_video(download.value.path()).frames
        assert len(seen) == 5 + last  # the tiny model looks back on 5 frames

        # Back to the second step, and on from there.
        number = page.get_by_label("number input for Step", exact=True)
        number.fill("2")
        number.press("Tab")
        wait_for("x.dataset.step == 2")
        page.click("#play_go_on")
        wait_for("x.dataset.step > 2")
        page.click("#play_pause")
        page.locator("#play_status").get_by_text("Paused after step").wait_for()
        assert step() < last


def test_a_model_without_actions_has_no_play(browser, make_tiny_pipe):
    pytest.importorskip("gradio", reason='needs pip install ".[demo]"')
    from diffusers_videogpt.commands.demo_page import running_page

    with running_page(make_tiny_pipe(), LIMITS) as url:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("#status").get_by_text("Press").wait_for()
        assert page.get_by_role("tab").all_inner_texts() == ["Predict", "Step by step"]


def test_the_page_in_a_browser(browser, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason='needs pip install ".[demo]"')
    from diffusers_videogpt.commands.demo_page import running_page

    # A fast machine is at the end before the browser looks: what follows the first clip waits until that was seen.
    first_clip_seen, begun, next_clip = threading.Event(), itertools.count(), Rollouts.next_clip

    def next_clip_in_turn(rollouts, owner):
        if next(begun) > 0:
            assert first_clip_seen.wait(60)
        return next_clip(rollouts, owner)

    monkeypatch.setattr(Rollouts, "next_clip", next_clip_in_turn)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    looked_up, look_up = [], socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda host, *rest, **k: looked_up.append(host) or look_up(host, *rest, **k)
    )
    pipe = VideoGPTPipeline.from_pretrained(BUNDLED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    with running_page(pipe, LIMITS, note="It knows balls alone.") as url:
        assert url.startswith("http://127.0.0.1:")
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))

        def wait_for(words: str, element: str = "#status"):
            page.locator(element).get_by_text(words).wait_for()

        def choose(label: str, value: int):
            page.get_by_label(f"number input for {label}").fill(str(value))
            page.get_by_label(f"number input for {label}").press("Tab")

        def upload(path):
            if page.locator("#upload input[type=file]").count() == 0:
                page.locator("#upload").get_by_label("Clear").click()
            page.locator("#upload input[type=file]").set_input_files(path)

        # One click: the clips of the sample arrive one after another.
        page.goto(url)
        wait_for("8 frames given, 16 more to compare with")
        page.click("#settings button")
        page.click("#run")
        wait_for(f"Going on: {pipe.config.frames_per_clip} of 16 frames")
        first_clip_seen.set()
        wait_for("Done: 16 of 16 frames")
        assert page.locator("#strip img").count() == page.locator("#comparison video").count() == 1
        assert re.search(r"clip 2\s+[\d.]+ dB", page.inner_text("#scores"))
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "sample_prediction.mp4"
        assert len(read_video(download.value.path()).frames) == 24

        # Another site's name that leads here is refused.
        other = {"Host": "rebound.example:80"}
        assert page.request.get(url, headers=other).status == 403
        assert page.request.get(url).status == 200

        # What is no sample is what the model may not know.
        assert not page.get_by_text("It knows balls alone.").is_visible()

        # Broken uploads are told apart, and what follows works.
        for name, message in write_broken(tmp_path).items():
            upload(tmp_path / name)
            wait_for(f"That did not work. {name}")
            assert message in page.inner_text("#status")
        page.click("#cancel", trial=True, timeout=10_000)  # no notice lies over the button
        heavy = {"name": "heavy.mp4", "mimeType": "video/mp4", "buffer": bytes(2_000_000)}
        assert page.request.post(f"{url}gradio_api/upload", multipart={"files": heavy}).status == 413
        upload(write_video(tmp_path / "one.mp4", noise(1, 64, 64), fps=10))
        wait_for("1 frames given, 0 more")
        page.get_by_text("It knows balls alone.").wait_for()
        page.click("#run")
        wait_for("Done: 16 of 16 frames")

        # Cancel, and begin anew.
        choose("Frames to predict", 64)
        choose("Frames per clip", 1)
        choose("Steps per clip", 20)  # so that it is not done before it is stopped
        page.click("#run")
        wait_for("Going on")
        page.click("#cancel")
        wait_for("Stopped")
        choose("Frames to predict", 8)
        choose("Frames per clip", 8)
        choose("Steps per clip", 4)
        page.click("#run")
        wait_for("Done: 8 of 8 frames")

        # Step by step, on from a frame that was drawn on.
        page.get_by_role("tab", name="Step by step").click()
        page.click("#begin")
        wait_for("8 frames predicted", "#walk_status")
        page.click("#keep")
        wait_for("16 frames predicted", "#walk_status")
        box = page.locator("#editor canvas").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        page.click("#use_own")
        wait_for("24 frames predicted", "#walk_status")

        # Neither side asked anything of the web.
        assert set(looked_up) <= {"127.0.0.1", "localhost"}
        assert {address.split("/")[2] for address in asked if address.startswith("http")} == {url.split("/")[2]}
    assert not list((tmp_path / "temporary").glob("videogpt-demo-*"))  # nothing of a visitor stays
