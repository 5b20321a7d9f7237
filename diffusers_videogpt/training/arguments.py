"""The arguments that training scripts share, and what is made from them. Each can also stand in a YAML file (`--config`)."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from diffusers import AutoModel

from ..arguments import positive_int
from ..data.sampling import Sampling
from ..data.videos import VideoTable
from ..pipeline_videogpt import VideoGPTPipeline
from ..saved_models import refuse_other_kinds
from ..scheduling_next_clip_flow_match import NextClipFlowMatchScheduler
from ..transformer_videogpt import VideoGPTTransformerModel
from .phi3 import load_phi3_decoder


def make_parser(doc: str) -> argparse.ArgumentParser:
    """The parser of a script, with the first line of its docstring above the help."""
    return argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_flag(parser, name: str, help: str | None = None) -> None:
    """A switch that is off by default. `--no-…` turns it off again, which a YAML file may have turned on."""
    parser.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=help)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 0 to 1")
    return number


def refuse_options(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Ends the program if an option was given that has no effect on `what`."""
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} does not apply to {what}: leave it out")


def parse_arguments(parser: argparse.ArgumentParser, command_line: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `--config FILE.yaml` sets defaults by argument name, and the command line wins.

    A wrong name, a value of the wrong type or one outside the choices ends the program with the file's name.
    """
    parser.add_argument("--config", type=Path, help="YAML file of arguments by their names; the command line wins")
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--config", type=Path)
    config = known.parse_known_args(command_line)[0].config
    if config is None:
        return parser.parse_args(command_line)
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {config}: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {config}: it holds {type(values).__name__}, not names of arguments with values")
    actions = {action.dest: action for action in parser._actions}
    from_file = []
    for name, value in values.items():
        if name not in actions or name in ("config", "help"):
            parser.error(f"--config {config}: there is no argument '{name}'")
        action = actions[name]
        if isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                parser.error(f"--config {config}: '{name}' is true or false, got {value!r}")
            from_file.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            items = value if isinstance(value, list) else [value]
            from_file += [f"--{name}", *(str(item) for item in items)]
    # Placed before the command line, they go through the same checks and are overridden by it.
    return parser.parse_args([*from_file, *(sys.argv[1:] if command_line is None else command_line)])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--pretrained_model_name_or_path", help="a Video-GPT pipeline to start from: a folder or a Hub id"
    )
    group.add_argument("--revision", help="of the pipeline on the Hub")
    group.add_argument("--variant", help="of the pipeline's weights, for example bf16")
    group.add_argument("--pretrained_vae_path", help="a VAE, where there is no pipeline to start from")
    group.add_argument("--transformer_config", type=Path, help="JSON arguments of a transformer to train from nothing")
    group.add_argument("--pretrained_phi3_path", help="a Phi-3 checkpoint whose decoder a new transformer starts from")
    group.add_argument("--vae_dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    group.add_argument(
        "--frames_per_clip",
        type=positive_int,
        help="at inference: kept in the saved pipeline; default: the model's own, of a new one 8",
    )
    group.add_argument(
        "--guidance_scale",
        type=float,
        help="at inference: kept in the saved pipeline; default: the model's own, of a new one 3",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--instance_data_root", type=Path, help="folder of videos, or the folder that a table's paths start from"
    )
    group.add_argument(
        "--dataset_file", type=Path, help="CSV or JSONL table with a column of paths; or UCF-101's trainlist01.txt"
    )
    group.add_argument("--dataset_name", help="Hub dataset, or a local folder that `datasets` loads (also WebDataset)")
    group.add_argument("--dataset_config_name")
    group.add_argument("--dataset_split", default="train")
    group.add_argument("--video_column", default="video")
    group.add_argument("--caption_column", help="what the videos show, in words; kept in a cache of latents")
    group.add_argument("--label_column", help="their classes; of a folder and a .txt list they are the folders' names")
    add_flag(group, "--streaming", help="read --dataset_name as a stream, without a download")
    group.add_argument(
        "--num_simulated_scenes", type=positive_int, help="train on simulated physics instead of videos"
    )
    group.add_argument(
        "--simulated_world",
        choices=["physics", "orders"],
        default="physics",
        help="scenes of five kinds, or of balls and boxes made to order, for text to video",
    )
    group.add_argument(
        "--frames_per_scene", type=positive_int, help="frames of a simulated scene; default: max_num_frames"
    )
    group.add_argument("--max_num_frames", type=positive_int, default=48, help="frames of one training sample")
    group.add_argument(
        "--min_num_frames", type=positive_int, help="shorter videos are used down to this; default: not at all"
    )
    group.add_argument(
        "--frame_interval", type=int, nargs="+", default=[1], metavar="N", help="source frames a step: N, or MIN MAX"
    )
    group.add_argument("--target_fps", type=float, help="frames a second of a sample, instead of --frame_interval")
    group.add_argument(
        "--longest_side", type=positive_int, default=320, help="size in pixels; the aspect ratio is kept"
    )
    group.add_argument(
        "--height", type=int, help="with --width: a fixed size, multiples of 16, instead of --longest_side"
    )
    group.add_argument("--width", type=int)
    group.add_argument(
        "--max_bad_fraction", type=share, default=0.5, help="a larger share of unusable videos stops the run"
    )
    group.add_argument("--seed", type=int, default=0)


def check_data_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    sources = ("instance_data_root", "dataset_file", "dataset_name", "num_simulated_scenes", "cached_latents")
    if all(getattr(args, source, None) is None for source in sources):
        parser.error("give videos: --instance_data_root, --dataset_file, --dataset_name or --num_simulated_scenes")
    if sum(x is not None for x in (args.dataset_file, args.dataset_name, args.num_simulated_scenes)) > 1:
        parser.error("give only one of --dataset_file, --dataset_name and --num_simulated_scenes")
    for other in ("num_simulated_scenes", "dataset_name"):
        if args.instance_data_root is not None and getattr(args, other) is not None:
            parser.error(f"--instance_data_root and --{other} both say where the videos come from: give one")
    # Not --dataset_file: beside UCF-101's lists are the numbers of the classes.
    for other in ("instance_data_root", "dataset_name", "num_simulated_scenes", "streaming", "windows_per_video"):
        if getattr(args, "cached_latents", None) is not None and getattr(args, other):
            parser.error(f"--cached_latents are trained on instead of videos: leave out --{other}")
    if (args.height is None) != (args.width is None):
        parser.error("give --height and --width together, or --longest_side")
    if args.height is not None and (args.height % 16 or args.width % 16):
        parser.error(f"--height {args.height} --width {args.width}: both must be multiples of 16")
    if (
        len(args.frame_interval) > 2
        or min(args.frame_interval) < 1
        or sorted(args.frame_interval) != args.frame_interval
    ):
        parser.error(f"--frame_interval takes one number or a range MIN MAX, got {args.frame_interval}")
    if args.target_fps is not None and args.frame_interval != [1]:
        parser.error("--target_fps and --frame_interval both set the rate: give one")
    if args.streaming and args.dataset_name is None:
        parser.error("--streaming needs --dataset_name")


def make_sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(
        max_num_frames=args.max_num_frames,
        min_num_frames=args.min_num_frames,
        frame_interval=(args.frame_interval[0], args.frame_interval[-1]),
        fps=args.target_fps,
        longest_side=args.longest_side,
        height=args.height,
        width=args.width,
    )


def load_video_table(args: argparse.Namespace) -> VideoTable:
    """The usable videos that the data arguments name."""
    sampling = make_sampling(args)
    if args.num_simulated_scenes is not None:
        num_frames = args.frames_per_scene or args.max_num_frames
        return VideoTable.simulated(args.num_simulated_scenes, num_frames, sampling, world=args.simulated_world)
    if args.dataset_file is not None:
        return VideoTable.from_table(
            args.dataset_file,
            sampling,
            video_column=args.video_column,
            caption_column=args.caption_column,
            label_column=args.label_column,
            root=args.instance_data_root,
            max_bad_fraction=args.max_bad_fraction,
        )
    if args.dataset_name is not None:
        return VideoTable.from_dataset(
            args.dataset_name,
            sampling,
            split=args.dataset_split,
            video_column=args.video_column,
            caption_column=args.caption_column,
            label_column=args.label_column,
            config_name=args.dataset_config_name,
            max_bad_fraction=args.max_bad_fraction,
        )
    return VideoTable.from_folder(args.instance_data_root, sampling, max_bad_fraction=args.max_bad_fraction)


def load_vae(args: argparse.Namespace):
    """The VAE of the pipeline, or the one given by itself, in `--vae_dtype`."""
    dtype = getattr(torch, args.vae_dtype)
    if args.pretrained_vae_path is not None:
        return AutoModel.from_pretrained(args.pretrained_vae_path, dtype=dtype)
    refuse_other_kinds(args.pretrained_model_name_or_path, VideoGPTPipeline.__name__)
    return AutoModel.from_pretrained(
        args.pretrained_model_name_or_path,
        subfolder="vae",
        revision=args.revision,
        variant=args.variant,
        dtype=dtype,
    )


def load_pipeline(args: argparse.Namespace) -> VideoGPTPipeline:
    """The pipeline to start from; or a new one around a VAE, its transformer from nothing or from Phi-3's decoder."""
    vae = load_vae(args)
    given = {"frames_per_clip": args.frames_per_clip, "guidance_scale": args.guidance_scale}
    given = {name: value for name, value in given.items() if value is not None}
    longest_side = max(args.height, args.width) if args.height else args.longest_side
    if args.pretrained_model_name_or_path is not None:
        pipe = VideoGPTPipeline.from_pretrained(
            args.pretrained_model_name_or_path, revision=args.revision, variant=args.variant, vae=vae
        )
        # Weights that are trained are kept in fp32, whatever they were published in.
        pipe.transformer.float()
        pipe.register_to_config(**given, longest_side=longest_side)
        widen_window(pipe, args.max_num_frames)
        return pipe
    config = json.loads(args.transformer_config.read_text()) if args.transformer_config else {}
    transformer = VideoGPTTransformerModel(**config)
    transformer.init_weights(torch.Generator().manual_seed(args.seed))
    if args.pretrained_phi3_path is not None:
        load_phi3_decoder(transformer, args.pretrained_phi3_path)
    inference = {"frames_per_clip": 8, "guidance_scale": 3.0} | given
    return VideoGPTPipeline(
        vae=vae,
        transformer=transformer,
        scheduler=NextClipFlowMatchScheduler(),
        max_context_frames=max(args.max_num_frames - inference["frames_per_clip"], 1),
        longest_side=longest_side,
        **inference,
    )


def widen_window(pipe: VideoGPTPipeline, num_frames: int) -> None:
    """A model that is trained on samples of `num_frames` looks back as far as they let it."""
    window = max(pipe.config.max_context_frames, num_frames - pipe.config.frames_per_clip)
    pipe.register_to_config(max_context_frames=window)


def check_model_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.pretrained_model_name_or_path is None and args.pretrained_vae_path is None:
        parser.error("give --pretrained_model_name_or_path, or --pretrained_vae_path with --transformer_config")
    if args.pretrained_model_name_or_path is not None and (args.transformer_config or args.pretrained_phi3_path):
        parser.error(
            "--pretrained_model_name_or_path brings its transformer: leave out --transformer_config and Phi-3"
        )
