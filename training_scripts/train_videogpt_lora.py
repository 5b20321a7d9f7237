"""Fine-tune Video-GPT with LoRA on a small set of videos: a folder of animations in, an adapter out.

    accelerate launch training_scripts/train_videogpt_lora.py --pretrained_model_name_or_path MODEL \
        --instance_data_root animations --max_num_frames 48 --output_dir lora
    videogpt predict --model MODEL --lora lora --image cat.png

Two clips as in the paper: the first frame is given, the rest is one clip. Latents are cached before the first step, eight
samples of each video (`--windows_per_video`), unless they are cached already or the videos come as a stream. Only the adapter
is trained and kept in checkpoints; data, resume and validation are those of `train_videogpt.py`.

Writes into --output_dir: `pytorch_lora_weights.safetensors` with a card, `train_log.csv`, `latents/`, `validation/` with
animations of held-out first frames, and `checkpoint-N` folders for `--resume_from_checkpoint latest`.
"""

import torch
from diffusers import BitsAndBytesConfig
from peft import LoraConfig, prepare_model_for_kbit_training
from peft.utils import get_peft_model_state_dict

from diffusers_videogpt import VideoGPTPipeline, VideoGPTTransformerModel
from diffusers_videogpt.training.arguments import (
    add_data_arguments,
    add_flag,
    check_data_arguments,
    load_vae,
    make_parser,
    parse_arguments,
    positive_int,
    widen_window,
)
from diffusers_videogpt.training.feed import add_feed_arguments, check_feed_arguments, make_feed
from diffusers_videogpt.training.loop import TrainingLoop, add_loop_arguments
from diffusers_videogpt.training.model_card import hub_id
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import (
    NextClipTraining,
    add_recipe_arguments,
    check_recipe_arguments,
    settle_unused_parameters,
    start_processes,
)


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MLP = ["ff.linear_in", "ff.linear_out"]
PATCHES = ["noisy_patch_embed", "clean_patch_embed"]


def parse_args():
    parser = make_parser(__doc__)
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model_name_or_path", required=True, help="the pipeline to adapt")
    group.add_argument("--revision", help="of the pipeline on the Hub")
    group.add_argument("--variant", help="of the pipeline's weights, for example bf16")
    group.add_argument("--base_dtype", choices=["float32", "bfloat16"], default="float32", help="of frozen weights")
    group.add_argument("--quantize_base", choices=["nf4", "int8"], help="frozen weights by bitsandbytes (QLoRA)")
    group.add_argument("--pretrained_vae_path", help="another VAE than the pipeline's")
    group.add_argument("--vae_dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add_flag(group, "--vae_group_offload", help="keep the VAE on the CPU between its uses")
    group.add_argument(
        "--frames_per_clip",
        type=positive_int,
        help="of predictions; default: as trained, of random clips the pipeline's",
    )
    group = parser.add_argument_group("adapter")
    group.add_argument("--rank", type=positive_int, default=16)
    group.add_argument("--lora_alpha", type=float, help="default: the rank")
    group.add_argument("--lora_dropout", type=float, default=0.0)
    add_flag(group, "--train_mlp", help="adapt the MLPs too")
    add_flag(group, "--train_patch_embeddings", help="adapt the patch embeddings too")
    add_flag(group, "--use_dora")
    add_flag(group, "--use_rslora")
    add_data_arguments(parser)
    add_feed_arguments(parser, num_validation=None)
    add_recipe_arguments(parser, clips="first:1")
    add_loop_arguments(parser)
    parser.set_defaults(adam_weight_decay=0.01, lr_warmup_steps=100, max_train_steps=2000)
    parser.set_defaults(validation_given_frames=1)
    args = parse_arguments(parser)
    check_data_arguments(parser, args)
    check_feed_arguments(parser, args)
    check_recipe_arguments(parser, args)
    if args.push_to_hub and hub_id(args.pretrained_model_name_or_path) is None:
        parser.error(
            f"--push_to_hub: the page of a LoRA names its base on the Hub, and '{args.pretrained_model_name_or_path}' is not "
            "there. Train without it, then `videogpt export-hub … --base-model ID --push`"
        )
    if args.windows_per_video is None and args.cached_latents is None and not args.streaming:
        args.windows_per_video = 8
    return args


def load_base(args) -> VideoGPTPipeline:
    """The pipeline with frozen weights, quantized if asked to."""
    dtype = getattr(torch, args.base_dtype)
    config = None
    if args.quantize_base == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    elif args.quantize_base == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    vae = load_vae(args)
    transformer = VideoGPTTransformerModel.from_pretrained(
        args.pretrained_model_name_or_path,
        subfolder="transformer",
        revision=args.revision,
        variant=args.variant,
        dtype=dtype,
        quantization_config=config,
    )
    pipe = VideoGPTPipeline.from_pretrained(
        args.pretrained_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        transformer=transformer,
        vae=vae,
    )
    transformer.requires_grad_(False)
    if args.quantize_base is not None:
        prepare_model_for_kbit_training(transformer, use_gradient_checkpointing=False)
    return pipe


def predicted_clip(args, pipe: VideoGPTPipeline) -> int:
    """Frames that are predicted at once: as many as a clip has in training."""
    if args.frames_per_clip is not None:
        return args.frames_per_clip
    if args.clips == "random":
        return pipe.config.frames_per_clip
    lengths = parse_clips(args.clips)(args.max_num_frames, None)
    return lengths[-1] if args.clips.startswith("first") else lengths[0]


def add_adapter(transformer: VideoGPTTransformerModel, args) -> LoraConfig:
    """A new adapter, in fp32, which begins as no change; returns its configuration."""
    targets = ATTENTION + MLP * args.train_mlp + PATCHES * args.train_patch_embeddings
    torch.manual_seed(args.seed)
    config = LoraConfig(
        r=args.rank,
        lora_alpha=args.rank if args.lora_alpha is None else args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        use_dora=args.use_dora,
        use_rslora=args.use_rslora,
    )
    transformer.add_adapter(config)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return config


def save(args, accelerator, loop: TrainingLoop, training: NextClipTraining, config: LoraConfig) -> None:
    """Saves the adapter with its card."""
    weights = loop.trained_state_dict()
    if not accelerator.is_main_process:
        return
    transformer = accelerator.unwrap_model(loop.model)
    layers = get_peft_model_state_dict(transformer, state_dict=weights, adapter_name="default")
    VideoGPTPipeline.save_lora_weights(args.output_dir, layers, transformer_lora_adapter_metadata=config.to_dict())
    training.publish(loop, "training_scripts/train_videogpt_lora.py", is_adapter=True)


def main():
    args = parse_args()
    accelerator = start_processes(args)
    if args.base_dtype == "bfloat16" and accelerator.mixed_precision != "bf16":
        raise SystemExit(
            "--base_dtype bfloat16 needs --mixed_precision bf16: the adapter itself is trained in float32."
        )
    pipe = load_base(args)
    pipe.register_to_config(frames_per_clip=predicted_clip(args, pipe))
    widen_window(pipe, args.max_num_frames)
    pipe.set_progress_bar_config(disable=True)
    if args.vae_group_offload:
        pipe.vae.enable_group_offload(accelerator.device, offload_type="leaf_level")
    else:
        pipe.vae.to(accelerator.device)
    feed = make_feed(args, accelerator, pipe.vae, parse_clips(args.clips, args.max_clips))
    config = add_adapter(pipe.transformer, args)
    training = NextClipTraining(args, accelerator, pipe, feed)
    settle_unused_parameters(args, accelerator, pipe.transformer, feed)
    loop = TrainingLoop(
        args,
        accelerator,
        pipe.transformer,
        feed,
        training.loss,
        run={
            "base": args.pretrained_model_name_or_path,
            "adapter": {name: getattr(config, name) for name in ("r", "lora_alpha", "use_dora", "use_rslora")}
            | {"target_modules": sorted(config.target_modules)},
            **training.run_fields(),
            **feed.run_fields(),
        },
        validate=training.validate,
        trainable_only=True,
    )
    loop.run()
    save(args, accelerator, loop, training, config)
    accelerator.end_training()


if __name__ == "__main__":
    main()
