"""Distil a Video-GPT pipeline: one or two steps a clip instead of fifty guided ones, by causal consistency distillation.

    accelerate launch training_scripts/train_distillation.py --pretrained_model_name_or_path MODEL \
        --instance_data_root videos --output_dir fast
    videogpt predict --model fast given.mp4

The teacher is MODEL with its guidance, the student begins as a copy of it; `--student lora` trains an adapter of MODEL instead,
which `pipe.load_lora_weights` loads. Data, resume and validation are those of `train_videogpt.py`.

Writes into --output_dir: the pipeline, which knows its number of steps and that it needs no guidance (or
`pytorch_lora_weights.safetensors`), with a card, `train_log.csv`, `validation/` with predictions of held-out videos in 1, 2 and 4
steps beside the teacher's, and `checkpoint-N` folders for `--resume_from_checkpoint latest`.
"""

from dataclasses import dataclass, fields

from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import (
    WITHOUT_CONTEXT_PARALLEL,
    AdapterSettings,
    BaseModelSettings,
    BatchSettings,
    DistillationSettings,
    LoopSettings,
    ObjectiveSettings,
    OptimizerSettings,
    SteeredPipelineSettings,
    require_base_on_hub,
)


# Noise levels are points of the grid, each as often, and the loss is between two predictions.
NO_NOISE_LEVELS = dict.fromkeys(
    (
        "weighting_scheme",
        "logit_mean",
        "logit_std",
        "mode_scale",
        "uniform_share",
        "loss_weighting",
        "max_loss_weight",
    ),
    "noise levels are those of --grid_steps, and the loss is --consistency_loss: leave it out",
)


@dataclass(kw_only=True)
class Settings(SteeredPipelineSettings):
    """Of a distillation: of all weights, or into an adapter."""

    model: BaseModelSettings = part()
    distillation: DistillationSettings = part()
    adapter: AdapterSettings = part(without=["lora_dropout"])
    # The teacher would have to be spread over processes too.
    batches: BatchSettings = part(without=WITHOUT_CONTEXT_PARALLEL)
    # One step of the student is what the model says of its own past.
    objective: ObjectiveSettings = part(
        without=NO_NOISE_LEVELS | {"resampled_steps": "the student makes it in one step"}
    )
    optimizer: OptimizerSettings = part(ema_decay=0.99, adam_weight_decay=0.0, lr_warmup_steps=100)
    loop: LoopSettings = part(max_train_steps=2000)

    def __post_init__(self):
        super().__post_init__()
        if self.distillation.student == "lora":
            require_base_on_hub(self.hub, self.model.pretrained_model_name_or_path)
            if self.output_dtype != "float32":
                raise ValueError("--output_dtype is of a saved pipeline; with --student lora an adapter is saved")
            return
        for field in fields(self.adapter):
            if getattr(self.adapter, field.name) != field.default:
                raise ValueError(f"--{field.name} has an effect only with --student lora")


def main():
    settings = parse_settings(Settings, __doc__, what="a distillation")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.data.latents import hash_weights
    from diffusers_videogpt.training.adapter import add_adapter, start_from_base
    from diffusers_videogpt.training.distillation import (
        AdapterDistillation,
        PipelineDistillation,
        check_actions,
        load_student,
    )
    from diffusers_videogpt.training.recipe import record_run, run_training

    check_actions(settings.model, settings.actions)
    accelerator, pipe, feed = start_from_base(settings, clips="random")
    how = {
        "feed": feed,
        "recipe": settings.recipe,
        "distillation": settings.distillation,
        "actions": settings.actions,
        "base_hash": hash_weights(pipe.transformer)[:16],
    }
    if settings.distillation.student == "lora":
        config = add_adapter(pipe.transformer, settings.adapter, seed=settings.sampling.seed)
        base = settings.model.pretrained_model_name_or_path
        training = AdapterDistillation(accelerator, pipe, base=base, config=config, **how)
    else:
        teacher, pipe.transformer = pipe.transformer, load_student(settings.model)
        pipe.register_to_config(longest_side=settings.sampling.longest_pixels)
        training = PipelineDistillation(accelerator, pipe, teacher=teacher, **how)
    record = record_run(settings, "training_scripts/train_distillation.py")
    run_training(accelerator, training, feed=feed, run=settings.run, record=record)


if __name__ == "__main__":
    run_script(main)
