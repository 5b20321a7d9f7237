"""What a run takes over from the pipeline that it starts from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.training.loading import (
    load_pipeline,
    load_video_table,
    make_sampling,
    read_transformer_config,
    settle_from_base,
)
from diffusers_videogpt.training.settings import (
    LoopSettings,
    ModelSettings,
    ObjectiveSettings,
    RolloutSettings,
    SamplingSettings,
    VideoSettings,
)
from diffusers_videogpt.video_io import write_video


def test_samples_are_of_the_size_that_the_base_was_made_for(tmp_path, make_tiny_pipe):
    make_tiny_pipe(longest_side=48).save_pretrained(tmp_path)
    base, new = (
        ModelSettings(pretrained_model_name_or_path=str(tmp_path)),
        ModelSettings(pretrained_vae_path=str(tmp_path / "vae")),
    )
    for model, given, expected in ((base, None, 48), (base, 64, 64), (new, None, 320)):
        sampling = SamplingSettings(longest_side=given)
        settle_from_base(sampling, model)
        assert sampling.longest_side == expected == make_sampling(sampling).longest_side == sampling.longest_pixels
    # Beside a size of its own the longest side says nothing, and latents cached without a base are the same samples.
    sampling = SamplingSettings(height=32, width=32)
    settle_from_base(sampling, base)
    assert make_sampling(sampling) == make_sampling(SamplingSettings(height=32, width=32, frame_interval=(1,)))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        settle_from_base(SamplingSettings(), ModelSettings(pretrained_model_name_or_path=str(tmp_path / "nowhere")))


def test_rate_length_and_clips_are_those_that_the_base_was_trained_with(tmp_path, make_tiny_pipe):
    trained_with = {"fps": 8.0, "clips": "random", "max_clips": 3, "num_frames": 6}
    make_tiny_pipe(trained_with=trained_with).save_pretrained(tmp_path / "told")
    make_tiny_pipe().save_pretrained(tmp_path / "untold")

    def settle(base, sampling, objective):
        model = ModelSettings(pretrained_model_name_or_path=str(tmp_path / base))
        settle_from_base(sampling, model, objective=objective, clips="first:1")
        made = make_sampling(sampling)
        frames = (made.min_num_frames, made.max_num_frames)
        return made.fps, made.frame_interval, frames, objective.clips, objective.max_clips

    assert settle("told", SamplingSettings(), ObjectiveSettings()) == (8.0, (1, 1), (3, 6), "random", 3)
    assert settle("untold", SamplingSettings(), ObjectiveSettings()) == (None, (1, 1), (None, 48), "first:1", None)
    given = SamplingSettings(frame_interval=(2,), max_num_frames=5), ObjectiveSettings(clips="equal:2")
    assert settle("told", *given) == (None, (2, 2), (None, 5), "equal:2", None)
    index = tmp_path / "told" / "model_index.json"
    index.write_text(index.read_text().replace("8.0", '"fast"'))
    with pytest.raises(ValueError, match="`trained_with.fps` must be a finite number above 0, got 'fast'"):
        settle("told", SamplingSettings(), ObjectiveSettings())


def test_short_animations_are_used_as_the_bundled_model_was_trained(tmp_path):
    """24 frames at 12 a second, or a little less: none of the GIFs that the README's LoRA command is given is left out."""
    for index, (num_frames, fps) in enumerate(((24, 25), (24, 12.5), (31, 12), (40, 12))):
        frames = np.zeros((num_frames, 256, 256, 3), np.uint8)
        for t, frame in enumerate(frames):
            frame[:, 6 * t : 6 * t + 9] = 255
        write_video(tmp_path / f"{index}.gif", frames, fps=fps)
    sampling, rollouts = SamplingSettings(), RolloutSettings(validation_given_frames=23)
    settle_from_base(sampling, ModelSettings(pretrained_model_name_or_path=BUNDLED_MODEL), rollouts=rollouts)
    table = load_video_table(VideoSettings(instance_data_root=tmp_path), sampling)
    assert not table.dropped and [table.length(index) for index in range(4)] == [12, 22, 24, 24]
    assert table.size(0) == (64, 64)
    # What only the base's length makes impossible is told as soon as that is known.
    rollouts = RolloutSettings(validation_given_frames=24)
    rollouts.check_run(LoopSettings(output_dir=Path("out")), SamplingSettings())
    with pytest.raises(ValueError, match=r"--validation_given_frames 24 must lie in 1\.\.23: samples have 24 frames"):
        settle_from_base(
            SamplingSettings(), ModelSettings(pretrained_model_name_or_path=BUNDLED_MODEL), rollouts=rollouts
        )
    with pytest.raises(ValueError, match=r"must lie in 1\.\.3"):
        rollouts.check_run(LoopSettings(output_dir=Path("out")), SamplingSettings(max_num_frames=4))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"num_layer": 3}, "the transformer has no argument 'num_layer'; the nearest is 'num_layers'"),
        ({"zzz": 3}, "the transformer has no argument 'zzz'; there are in_channels, patch_size, "),
        ({"num_layers": "3"}, "`num_layers` must be a whole number in 1..1000, got '3'"),
        ([3], "this JSON is a list, not an object"),
    ],
)
def test_a_transformer_that_cannot_be_made_is_told(tmp_path, config, told):
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    vae = str(Path(BUNDLED_MODEL) / "vae")
    model = ModelSettings(pretrained_vae_path=vae, transformer_config=tmp_path / "cfg.json")
    with pytest.raises(ValueError, match=re.escape(told)):
        load_pipeline(model, SamplingSettings())


def test_the_config_of_a_saved_transformer_is_one_to_begin_with():
    saved = Path(BUNDLED_MODEL) / "transformer" / "config.json"
    config = read_transformer_config(saved)
    assert config == {name: x for name, x in json.loads(saved.read_text()).items() if not name.startswith("_")}


def test_a_new_transformer_has_the_channels_of_its_autoencoder(tmp_path):
    """The bundled autoencoder's 8, where the default is SDXL's 4. A configuration that says otherwise is refused, as no clip
    of these latents could be taken."""
    vae = str(Path(BUNDLED_MODEL) / "vae")
    small = {
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 8,
        "ffn_dim": 8,
        "rope_long_factor": None,
    }
    model = ModelSettings(pretrained_vae_path=vae, transformer_config=tmp_path / "cfg.json")
    model.transformer_config.write_text(json.dumps(small))
    assert load_pipeline(model, SamplingSettings()).transformer.config.in_channels == 8
    model.transformer_config.write_text(json.dumps(small | {"in_channels": 6}))
    with pytest.raises(ValueError, match="The VAE's latents have 8 channels, the transformer takes 6"):
        load_pipeline(model, SamplingSettings())
