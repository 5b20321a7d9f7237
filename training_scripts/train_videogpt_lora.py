"""Fine-tune Video-GPT with LoRA on a small set of videos: a folder of animations in, an adapter out.

    accelerate launch training_scripts/train_videogpt_lora.py --pretrained_model_name_or_path MODEL \
        --instance_data_root animations --output_dir lora
    videogpt predict --model MODEL --lora lora --image cat.png

Two clips as in the paper: the first frame is given, the rest is one clip. Latents are cached before the first step, eight
samples of each video (`--windows_per_video`), unless they are cached already or the videos come as a stream. Only the adapter
is trained and kept in checkpoints; data, resume and validation are those of `train_videogpt.py`.

The defaults are made for small sets: the run ends when the loss of held-out videos has stopped falling, keeps the adapter that had
the lowest, and tells what it found.

Writes into --output_dir: `pytorch_lora_weights.safetensors` with a card, `train_log.csv`, `latents/`, `validation/` with
`held_out.png` (held-out first frames: still, base, LoRA, truth) and `report.json`, and `checkpoint-N` folders for
`--resume_from_checkpoint latest`.
"""

from dataclasses import dataclass

from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import (
    AdapterSettings,
    BaseModelSettings,
    BatchSettings,
    RolloutSettings,
    SteeredSettings,
    require_base_on_hub,
)
from diffusers_videogpt.training.small_sets import (
    AdapterOptimizerSettings,
    SmallSetLoopSettings,
    SmallSetObjectiveSettings,
)


@dataclass(kw_only=True)
class Settings(SteeredSettings):
    """Of a training by next clip diffusion whose model is a frozen base and an adapter."""

    model: BaseModelSettings = part()
    adapter: AdapterSettings = part(rank=32, train_mlp=True)
    batches: BatchSettings = part(train_batch_size=4)
    objective: SmallSetObjectiveSettings = part()
    optimizer: AdapterOptimizerSettings = part(
        adam_weight_decay=0.01, lr_scheduler="linear", lr_warmup_steps=20, ema_decay=0.95
    )
    loop: SmallSetLoopSettings = part()
    validation: RolloutSettings = part(validation_given_frames=1)

    def __post_init__(self):
        super().__post_init__()
        require_base_on_hub(self.hub, self.model.pretrained_model_name_or_path)
        latents = self.latents
        if latents.windows_per_video is None and latents.cached_latents is None and not self.videos.streaming:
            latents.windows_per_video = 8


def main():
    settings = parse_settings(Settings, __doc__, what="an adapter")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.data.latents import hash_weights
    from diffusers_videogpt.training.adapter import AdapterTraining, add_adapter, start_from_base
    from diffusers_videogpt.training.recipe import record_run, run_training

    accelerator, pipe, feed = start_from_base(settings)
    settings.loop.settle(feed.num_videos, feed.samples_a_step, rollouts=settings.validation)
    settings.optimizer.settle(pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim)
    base_hash = hash_weights(pipe.transformer)[:16]
    config = add_adapter(pipe.transformer, settings.adapter, seed=settings.sampling.seed)
    training = AdapterTraining(
        accelerator,
        pipe,
        feed=feed,
        base=settings.model.pretrained_model_name_or_path,
        base_hash=base_hash,
        config=config,
        recipe=settings.recipe,
        actions=settings.actions,
        patience=settings.loop.patience,
    )
    record = record_run(settings, "training_scripts/train_videogpt_lora.py")
    run_training(accelerator, training, feed=feed, run=settings.run, record=record)


if __name__ == "__main__":
    run_script(main)
