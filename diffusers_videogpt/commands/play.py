"""`videogpt play`: a model that was trained on actions, played by keys in a window, or by a list of actions."""

import argparse
import time
from typing import Any

import numpy as np

from .. import BUNDLED_STEERED_MODEL
from ..arguments import check_output, finite_float, natural_int, number_of_frames, number_of_steps
from ..console import say
from .loras import COMPARED, differences, follow_lora
from .models import QUANTIZERS, check_loras, leave_out, load_pipeline, look_at_model, refuse_missing
from .options import (
    add_command,
    add_device_argument,
    add_dtype_argument,
    add_lora_argument,
    add_model_argument,
    add_output_argument,
    add_seed_argument,
    parse_rate,
    parse_source,
)
from .outputs import check_written_rate, enlarge, is_video_file, output_paths, scale_to_show


# Without the option, and without a LoRA that was trained with something else
DEFAULTS = {"steps": None, "guidance_scale": 1.0, "fps": 12.0}
SIZE = ("height", "width")  # has no options: it is that of the model, or of a LoRA
KEYS = "arrow keys and digits act, R goes back, S saves, Escape ends"


def parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def play(args: argparse.Namespace) -> None:
    """Plays in a model that was trained on actions: by keys in a window, or by --actions without one. Begins with VIDEO, or
    with a scene of the simulator; what was seen is written as a video and a film strip."""
    check_output(args.output.parent if is_video_file(args.output) else args.output)
    check_written_rate(args.output, args.fps or DEFAULTS["fps"])
    refuse_missing(args.video, "video")
    saved = look_at_model(args.model)
    num_actions = saved.transformer.get("num_actions")
    if num_actions is None:
        raise ValueError(
            f"--model: the model in {saved.name} was not trained on discrete actions, so no key can steer it: train one with "
            "training_scripts/configs/physics_steered.yaml."
        )
    trained_with = check_loras(args.lora)
    saved = follow_lora(args, saved, trained_with=trained_with, options=("fps", *SIZE))
    for option, default in DEFAULTS.items():
        if getattr(args, option) is None:
            setattr(args, option, saved.settings.get(COMPARED[option], default))
    check_written_rate(args.output, args.fps)
    from ..tasks.action_names import check_names, read_actions
    from ..tasks.window import Window
    from ..worlds import ACTIONS

    names = args.names or (ACTIONS if num_actions == len(ACTIONS) else ())
    check_names(names, num_actions)
    actions = None if args.actions is None else read_actions(args.actions, names, num_actions=num_actions)
    window = Window("Video-GPT") if actions is None else None
    if window is not None and not window.has_screen:
        raise ValueError("There is no screen for a window here: give --actions, as in --actions 'right*8 up*4'.")
    given = read_start(args, saved)
    say(*differences(args, saved, trained_with=trained_with))
    leave_out(() if saved.is_quantized else QUANTIZERS)
    from ..tasks.playing import Player
    from ..tasks.world_model import WorldModel

    pipe = load_pipeline(saved, device=args.device, dtype=args.dtype, loras=args.lora)
    pipe.set_progress_bar_config(disable=True)
    world = WorldModel(
        pipe,
        num_history_frames=min(args.num_history_frames, len(given["video"]), pipe.config.max_context_frames),
        frames_per_step=args.frames_per_step,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        action_guidance_scale=args.action_guidance_scale,
    )
    size = {option: getattr(args, option) for option in SIZE}
    player = Player(world, world.begin(**given, **size, seed=args.seed), names=names)
    name = "played" if args.video is None else f"{args.video.stem}_played"
    began = time.perf_counter()
    if window is not None:
        say(KEYS)
        play_by_keys(player, window, fps=args.fps, save=lambda: say(*write(args, player, name=name)))
    else:
        for action in actions:
            player.act(action)
    seconds = time.perf_counter() - began
    if player.num_steps:
        say(f"{player.num_steps} steps in {seconds:.1f} s", *write(args, player, name=name))


def read_start(args: argparse.Namespace, saved) -> dict[str, Any]:
    """`video` and `actions` that the play begins with, as arguments of [`~tasks.world_model.WorldModel.begin`]."""
    if args.video is None:
        from ..worlds import ACTIONS, steer

        scene = steer(args.scene, args.num_history_frames, size=saved.number("longest_side"), fps=args.fps)
        return {
            "video": scene.frames,
            "actions": scene.actions if saved.transformer["num_actions"] == len(ACTIONS) else None,
        }
    from ..video_io import read_video

    frames = read_video(args.video, max_frames=args.num_history_frames, from_end=True).frames
    return {"video": frames, "actions": None}


def play_by_keys(player, window, *, fps: float, save) -> None:
    """Steps on and on by the keys that are down, until the window is closed: as fast as `fps`, or as the model is."""
    window.show(player.frames[-1])
    while True:
        pressed, down = window.keys()
        if window.is_closed or "escape" in pressed:
            break
        if "s" in pressed and player.num_steps:
            save()
        began = time.perf_counter()
        if "r" in pressed:
            player.rewind()
            shown = player.frames[-1:]
        else:
            # A key that was pressed and let go between two steps counts for one.
            shown = player.act(player.action_of_keys(down or set(pressed)))
        pause = max(len(shown) / fps - (time.perf_counter() - began), 0.0) / len(shown)
        for frame in shown:
            window.show(frame)
            time.sleep(pause)
    window.close()


def write(args: argparse.Namespace, player, *, name: str) -> list[str]:
    """Writes what was seen to new files, since one play may save several times; returns lines that say where."""
    from ..film_strips import write_film_strip
    from ..video_io import write_video

    video_path, strip_path = output_paths(args.output, name, replaces=False)
    frames: np.ndarray = player.frames
    write_video(video_path, enlarge(frames, scale_to_show(*frames.shape[1:3])), fps=args.fps)
    write_film_strip(strip_path, {"played": frames}, num_given=player.num_given, fps=args.fps)
    return [f"video: {video_path}", f"film strip: {strip_path}"]


def add_play_command(commands) -> None:
    command = add_command(commands, "play", run=play, help="steer a model that was trained on actions, by keys")
    start = command.add_mutually_exclusive_group()
    start.add_argument("video", nargs="?", type=parse_source, help="whose last frames the play begins with")
    start.add_argument(
        "--scene", type=natural_int, default=0, help="or a scene of the steered world, by its number (default: 0)"
    )
    add_model_argument(command, default=BUNDLED_STEERED_MODEL)
    add_lora_argument(command)
    command.set_defaults(**dict.fromkeys(SIZE))
    command.add_argument("--actions", metavar="'right*8 up*4'", help="what is done, without a window and keys")
    command.add_argument(
        "--names",
        type=parse_names,
        metavar="A,B,…",
        help="of the actions in order; keys do what has their name: left, right, up, down, and stay without a key. "
        "Default: those of the steered world, for a model of five",
    )
    command.add_argument("--num-history-frames", type=number_of_frames, default=8, help="looked back on (default: 8)")
    command.add_argument(
        "--frames-per-step", type=number_of_frames, default=1, help="that an action leads to (default: 1)"
    )
    command.add_argument(
        "--steps", type=number_of_steps, help="denoising steps of these (default: the model's own, or 8)"
    )
    command.add_argument("--guidance-scale", type=finite_float, help="history guidance (default: 1, none)")
    command.add_argument("--action-guidance-scale", type=finite_float, default=1.0, help="default: 1, none")
    command.add_argument("--fps", type=parse_rate, help="frames a second, at most (default: 12)")
    add_seed_argument(command)
    add_device_argument(command)
    add_dtype_argument(command)
    add_output_argument(command, "videogpt_output", help="folder, or a file that ends in .mp4, .webm or .gif")
