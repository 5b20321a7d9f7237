"""Real files and a real VAE from the shared folder; skipped where it is not there."""

import json
import re
import shutil
from pathlib import Path

import pytest
from golden_cases import CASES, GOLDEN_DIR

from diffusers_videogpt import BUNDLED_MODEL, VideoGPTPipeline
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.video_io import read_video


WINDOW = json.loads((Path(BUNDLED_MODEL) / "model_index.json").read_text())["max_context_frames"]
REAL_FILES = {  # name: width × height that the bundled model works at, frames a second
    "Video-GPT__bottel.mp4": ("64 × 32", 29.97 * (WINDOW - 1) / WINDOW),  # the last given frame comes one frame late
    "moviepy__big_buck_bunny_432_433.webm": ("64 × 32", 24.0),
    "sample-videos__again.mkv": ("64 × 48", 30.0),
    "pims__bulk-water.mov": ("64 × 32", 23.98),
    "Tune-A-Video__man-skiing.mp4": ("64 × 64", 29.97),
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_predict_on_a_real_file(name, shared_dir, tmp_path, capsys):
    path = shared_dir / "data" / "clips" / name
    options = ["--num-frames", "4", "--steps", "2", "--scale", "1"]
    main(["predict", str(path), *options, "--output", str(tmp_path)])
    size, fps = REAL_FILES[name]
    said = re.search(r"4 to predict, (\d+ × \d+) at ([\d.]+) frames/s", capsys.readouterr().out)
    assert said[1] == size and float(said[2]) == pytest.approx(fps, abs=0.1)
    video = read_video(tmp_path / f"{path.stem}_prediction.mp4")
    assert len(video.frames) == WINDOW + 4 and f"{video.frames.shape[2]} × {video.frames.shape[1]}" == size
    assert (tmp_path / f"{path.stem}_prediction.png").stat().st_size > 0


def test_low_frame_rate_like_a_gif(shared_dir, tmp_path, capsys):
    path = shared_dir / "data" / "clips" / "Video-GPT__bottel.mp4"
    main(["predict", str(path), "--fps", "4", "--num-frames", "4", "--steps", "2", "--output", str(tmp_path)])
    assert "at 4 frames/s" in capsys.readouterr().out
    assert read_video(tmp_path / "Video-GPT__bottel_prediction.mp4").fps == pytest.approx(4)


def test_converted_golden_checkpoint_with_taesdxl_at_320_x_176(shared_dir, tmp_path):
    """The authors' format, converted by the command, runs from file to file on a real video with a real VAE."""
    reference = tmp_path / "reference"
    reference.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN_DIR / name, reference)
    tokens = [{"id": token_id, "content": token} for token, token_id in CASES["token_ids"].items()]
    (reference / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    vae = shared_dir / "weights" / "taesdxl"
    main(["convert", str(reference), str(tmp_path / "pipeline"), "--vae", str(vae)])

    pipe = VideoGPTPipeline.from_pretrained(tmp_path / "pipeline")
    frames = read_video(shared_dir / "data" / "clips" / "moviepy__big_buck_bunny_432_433.webm", max_frames=4).frames
    predicted = pipe(video=frames, num_frames=4, frames_per_clip=2, num_inference_steps=2, output_type="np").frames
    assert predicted.shape == (1, 4, 176, 320, 3)
