"""`videogpt convert`: the authors' checkpoint → a pipeline, or back; a LoRA → the form that other tools read, or back."""

import argparse
from pathlib import Path

from ..arguments import check_output
from ..console import say
from ..extras import QUANTIZERS, leave_out
from ..saved_models import LORA_WEIGHTS
from .models import refuse_missing, told_of
from .options import add_command


def convert(args: argparse.Namespace) -> None:
    """Converts the authors' checkpoint folder to a pipeline that from_pretrained loads, bit-exactly; and a LoRA (a folder with
    pytorch_lora_weights.safetensors, or a safetensors file) to the plain keys that other tools read (diffusion_model.…). With
    --back, what other tools wrote (plain keys, kohya's, musubi-tuner's) comes in diffusers' form."""
    refuse_missing(args.input_dir, "INPUT_DIR")
    refuse_missing(args.vae, "--vae")
    check_output(args.output_dir, "OUTPUT_DIR")
    leave_out(QUANTIZERS)
    if args.input_dir.suffix == ".safetensors" or (args.input_dir / LORA_WEIGHTS).is_file():
        convert_lora(args)
        return
    from ..convert_checkpoint import convert_reference_checkpoint, convert_to_reference_checkpoint

    with told_of(f"INPUT_DIR {args.input_dir}"):
        if args.back:
            summary = convert_to_reference_checkpoint(args.input_dir, args.output_dir)
        else:
            summary = convert_reference_checkpoint(args.input_dir, args.output_dir, vae=args.vae)
    say(*(f"{key}: {value}" for key, value in summary.items()))


def convert_lora(args: argparse.Namespace) -> None:
    from ..pipeline_videogpt import VideoGPTPipeline

    if args.vae is not None:
        raise ValueError("--vae goes into a pipeline, and this is a LoRA: leave it out.")
    form, name = ("diffusers", LORA_WEIGHTS) if args.back else ("plain", f"{args.input_dir.stem}.safetensors")
    with told_of(f"INPUT_DIR {args.input_dir}"):
        VideoGPTPipeline.export_lora_weights(args.input_dir, args.output_dir / name, form=form)
    say(f"written: {args.output_dir / name}")


def add_convert_command(commands) -> None:
    command = add_command(commands, "convert", run=convert, help="the authors' checkpoint to a pipeline, or back")
    command.add_argument(
        "input_dir",
        metavar="INPUT_DIR",
        type=Path,
        help="the authors' folder; with --back, a converted pipeline; or a LoRA, its folder or file",
    )
    command.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="a new folder")
    command.add_argument("--vae", type=Path, help="folder of the VAE to put into the pipeline")
    command.add_argument("--back", action="store_true", help="to the authors' format; of a LoRA, to diffusers'")
