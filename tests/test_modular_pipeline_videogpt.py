"""Blocks against the standard pipeline: the same seed gives the same video, in one piece, apart, reordered, and joined by others."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ModularPipeline, UniPCMultistepScheduler
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, SequentialPipelineBlocks
from peft import LoraConfig
from text_encoders import WIDTH, make_text_encoder, make_tokenizer
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import (
    NextClipFlowMatchScheduler,
    VideoGPTBlocks,
    VideoGPTModularPipeline,
    VideoGPTPipeline,
)


VIDEO = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
HISTORY = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
NOT_FOR_BLOCKS = {"self", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}


@pytest.fixture
def standard(make_tiny_pipe):
    return make_tiny_pipe()


def make_modular(standard, blocks=None) -> VideoGPTModularPipeline:
    """A modular pipeline of the parts and the config of a standard one."""
    pipe = (blocks or VideoGPTBlocks()).init_pipeline()
    known = set(pipe.config) & set(standard.config)
    config = {name: value for name, value in standard.config.items() if name in known}
    pipe.update_components(**config | {n: c for n, c in standard.components.items() if n in pipe.component_names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def predict(pipe, **kwargs):
    """Latents predicted with few steps."""
    arguments = {"num_inference_steps": 2, "output_type": "latent"} | kwargs
    arguments.setdefault("generator", seeded())
    if isinstance(pipe, VideoGPTModularPipeline):
        return pipe(**arguments, output="videos")
    return pipe(**arguments).frames


def assert_same(first, second):
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


# The standard pipeline's result


@pytest.mark.parametrize(
    "arguments",
    [
        {"video": VIDEO, "output_type": "pt", "num_frames": 4},
        {"image": VIDEO[0], "height": 48, "width": 32, "num_videos_per_prompt": 2},
        {"num_frames": 4},
        {"video_latents": HISTORY, "num_frames": 8},
        {"video_latents": HISTORY, "num_frames": 8, "rolling_cache": True, "guidance_scale": 1.0},
        {"video_latents": HISTORY, "chunk_partition": [1, 3], "use_kv_cache": False, "max_context_frames": 3},
        {"video_latents": HISTORY, "num_frames": 4, "guidance_interval": (0.0, 0.5), "history_retention": 0.7},
        {"video": [VIDEO, VIDEO[::-1].copy()], "generator": "one a video"},
        {"video_latents": HISTORY, "latents": HISTORY[:, :, [1, 0, 2]] / 2, "num_frames": 3},
        {"latents": torch.cat([HISTORY, -HISTORY], dim=2), "num_frames": 6},
        {"video_latents": torch.cat([HISTORY, -HISTORY], dim=2), "max_context_frames": 6},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_same_as_the_standard_pipeline(standard, arguments):
    outputs = []
    for pipe in (standard, make_modular(standard)):
        generator = [seeded(1), seeded(2)] if "generator" in arguments else seeded()
        outputs.append(predict(pipe, **arguments | {"generator": generator}))
    assert_same(*outputs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_labels": "fall", "prompt": "one red ball falls", "num_frames": 4},
        {"prompt": ["a box", "two red balls fall"], "negative_prompt": "a ball", "video_latents": HISTORY},
        {"prompt_embeds": torch.randn(1, 3, WIDTH, generator=seeded(2)), "class_labels": 1},
        {"prompt": "a box", "condition_guidance_scale": 1.0},
        {"video_latents": HISTORY, "num_frames": 4},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_same_with_classes_and_text(make_tiny_transformer, arguments):
    standard = VideoGPTPipeline(
        None,
        make_tiny_transformer(num_classes=2, text_embed_dim=WIDTH),
        NextClipFlowMatchScheduler(),
        frames_per_clip=2,
        max_context_frames=5,
        longest_side=32,
        id2label={0: "bounce", 1: "fall"},
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
    )
    standard.set_progress_bar_config(disable=True)
    assert_same(predict(make_modular(standard), **arguments), predict(standard, **arguments))


def test_other_parts(standard):
    """Another scheduler, another VAE, a LoRA: as in the standard pipeline."""
    standard.scheduler = UniPCMultistepScheduler.from_config(standard.scheduler.config)
    standard.register_modules(vae=tiny_autoencoder_of())
    standard.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    arguments = {"video": VIDEO, "num_frames": 4, "attention_kwargs": {"scale": 0.5}}
    pipe = make_modular(standard)
    assert_same(predict(pipe, **arguments), predict(standard, **arguments))
    with pytest.raises(ValueError, match="unload_lora_weights"):
        pipe.save_pretrained("never written")


def test_every_argument_of_the_call_is_described(standard):
    pipe = make_modular(standard)
    assert (
        set(pipe.blocks.input_names) == set(inspect.signature(VideoGPTPipeline.__call__).parameters) - NOT_FOR_BLOCKS
    )
    assert "What the video shows." in pipe.doc and "TODO" not in pipe.doc


# Blocks apart, taken out, in another order, and with one's own


def test_blocks_run_apart(standard):
    """Encoded, predicted and decoded by pipelines of their own: none has more parts than it needs."""
    blocks = VideoGPTBlocks().sub_blocks
    names = [["encode_history"], ["conditions", "set_clips", "prepare_history", "rollout"], ["decode"]]
    encode, rollout, decode = (
        make_modular(standard, SequentialPipelineBlocks.from_blocks_dict({name: blocks[name] for name in part}))
        for part in names
    )
    assert encode.component_names == ["vae"] and decode.component_names == ["vae", "video_processor"]
    assert "vae" not in rollout.component_names
    generator = seeded()
    history = encode(video=VIDEO, generator=generator, output="history_latents")
    latents = rollout(
        history_latents=history, num_frames=4, num_inference_steps=2, generator=generator, output="predicted_latents"
    )
    frames = decode(predicted_latents=latents, output_type="pt", output="videos")
    assert_same(frames, predict(standard, video=VIDEO, num_frames=4, output_type="pt"))


def test_other_orders(standard):
    blocks = VideoGPTBlocks()
    in_the_loop = blocks.sub_blocks["rollout"].sub_blocks
    in_the_loop.insert("set_timesteps", in_the_loop["set_timesteps"], 0)
    for name in ("conditions", "set_clips"):
        blocks.sub_blocks.insert(name, blocks.sub_blocks[name], 2)
    assert list(blocks.sub_blocks)[:3] == ["encode_history", "conditions", "set_clips"]
    arguments = {"video": VIDEO, "num_frames": 8}
    assert_same(predict(make_modular(standard, blocks), **arguments), predict(standard, **arguments))


class ForgetPredictions(ModularPipelineBlocks):
    """In the loop: only `kept` frames of the history stay; history guidance grows from clip to clip."""

    inputs = [InputParam("history", required=True), InputParam("guidance_scale"), InputParam("kept", default=3)]

    def __call__(self, components, block_state, k):
        block_state.history.replace(block_state.history.latents[:, :, : block_state.kept])
        block_state.guidance_scale += 1
        return components, block_state


def test_own_block_between_clips(standard):
    blocks = VideoGPTBlocks()
    blocks.sub_blocks["rollout"].sub_blocks.insert("forget", ForgetPredictions(), 4)
    arguments = {"video_latents": HISTORY, "num_frames": 6, "guidance_scale": 1.0}
    pipe = make_modular(standard, blocks)
    for kept in (3, 2):
        history, generator, clips = HISTORY, seeded(), []
        for guidance_scale in (1.0, 2.0, 3.0):
            clips.append(predict(standard, video_latents=history, guidance_scale=guidance_scale, generator=generator))
            history = HISTORY[:, :, :kept]
        assert_same(predict(pipe, kept=kept, **arguments), torch.cat(clips, dim=2))


def test_without_a_block_its_result_is_an_argument(standard):
    blocks = VideoGPTBlocks()
    for name in ("encode_history", "set_clips", "decode"):
        blocks.sub_blocks.pop(name)
    blocks.sub_blocks["rollout"].sub_blocks.pop("append_history")  # each clip looks back on the given frames alone
    pipe = make_modular(standard, blocks)
    arguments = {"clip_lengths": [2, 1], "num_inference_steps": 2, "generator": seeded()}
    latents = pipe(history_latents=HISTORY, **arguments, output="predicted_latents")
    generator = seeded()
    clips = [predict(standard, video_latents=HISTORY, num_frames=n, generator=generator) for n in (2, 1)]
    assert_same(latents, torch.cat(clips, dim=2))
    with pytest.raises(ValueError, match="'clip_lengths' is missing"):
        pipe(history_latents=HISTORY)
    with pytest.warns(UserWarning, match="Unexpected input .*video"):
        pipe(video=VIDEO, **arguments)


def test_a_state_runs_again_with_other_arguments(standard):
    pipe = make_modular(standard)
    first = {"video": VIDEO, "num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}
    state = pipe(**first, generator=seeded())
    assert state.history is None  # its caches are not kept
    again = pipe(state, video=VIDEO[1:], generator=seeded(1), output="videos")
    assert_same(again, predict(standard, **first | {"video": VIDEO[1:], "generator": seeded(1)}))
    both = pipe(**first, generator=seeded(), output=["videos", "frame_size"])
    assert_same(both["videos"], state.predicted_latents)
    assert both["frame_size"] == (16, 32)


def test_interrupt(standard):
    pipe = make_modular(standard)
    pipe.transformer.register_forward_hook(lambda *_: setattr(pipe, "_interrupt", True))
    assert predict(pipe, num_frames=6).shape[2] == 2
    assert pipe.num_timesteps == 6


# Saved and loaded


@pytest.mark.parametrize("kind", ["standard", "for the Hub", "modular", "modular, moved"])
def test_loads_from_folders(standard, kind, tmp_path, caplog):
    folder = tmp_path / "saved"
    if kind.startswith("modular"):
        make_modular(standard).save_pretrained(folder, overwrite_modular_index=True)
        index = json.loads((folder / "modular_model_index.json").read_text())
        assert (index["_class_name"], index["_blocks_class_name"]) == ("VideoGPTModularPipeline", "VideoGPTBlocks")
        assert index["transformer"][:2] == ["diffusers_videogpt", "VideoGPTTransformerModel"]
    else:
        standard.save_pretrained(folder)
    if kind == "for the Hub":  # as `videogpt export-hub` writes it
        index = (folder / "model_index.json").read_text()
        (folder / "model_index.json").write_text(index.replace('"diffusers_videogpt"', '"diffusers"'))
    if kind == "modular, moved":
        folder = Path(shutil.move(folder, tmp_path / "moved"))
    arguments = {"video": VIDEO, "num_frames": 4}
    expected = predict(standard, **arguments)
    for pipe in (ModularPipeline.from_pretrained(folder), VideoGPTBlocks().init_pipeline(folder)):
        assert type(pipe) is VideoGPTModularPipeline and pipe.config.frames_per_clip == 2
        pipe.load_components()
        pipe.set_progress_bar_config(disable=True)
        assert_same(predict(pipe, **arguments), expected)
    assert sorted(pipe.null_component_names) == ["guider", "text_encoder", "tokenizer"] and "Failed" not in caplog.text


def test_text_encoder_is_saved_and_loaded(make_tiny_transformer, tmp_path):
    parts = {"text_encoder": make_text_encoder("bert"), "tokenizer": make_tokenizer()}
    transformer = make_tiny_transformer(text_embed_dim=WIDTH)
    standard = VideoGPTPipeline(None, transformer, NextClipFlowMatchScheduler(), longest_side=32, **parts)
    make_modular(standard).save_pretrained(tmp_path, overwrite_modular_index=True)
    pipe = ModularPipeline.from_pretrained(tmp_path)
    pipe.load_components()
    assert type(pipe.text_encoder) is type(parts["text_encoder"]) and pipe.vae is None
    # Loaded weights lie in the file's memory, at places where some CPUs round products otherwise.
    loaded = pipe.transformer.state_dict()
    pipe.transformer.load_state_dict({name: value.clone() for name, value in loaded.items()}, assign=True)
    arguments = {"prompt": "two red balls", "frames_per_clip": 1}
    assert_same(predict(pipe, **arguments), predict(standard, **arguments))


def test_decoder_alone_is_saved_and_loaded(standard, tmp_path):
    blocks = SequentialPipelineBlocks.from_blocks_dict({"decode": VideoGPTBlocks().sub_blocks["decode"]})
    make_modular(standard, blocks).save_pretrained(tmp_path, overwrite_modular_index=True)
    pipe = blocks.init_pipeline(tmp_path)
    pipe.load_components()
    arguments = {"predicted_latents": HISTORY, "output_type": "np"}
    np.testing.assert_array_equal(pipe(**arguments, output="videos"), standard.decode_latents(HISTORY, "np"))


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"video": VIDEO, "video_latents": HISTORY}, "only one of"),
        ({"height": 40}, "`height` must be divisible by 16"),
        ({"guidance_scale": 3.0}, "guides by history"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval"),
        ({"history_retention": 1.5}, "share in"),
        ({"latents": HISTORY}, "all 2 predicted frames, got 3"),
        ({"video_latents": HISTORY[:, :3]}, r"\(batch, 4, frames, height, width\)"),
        ({"max_context_frames": 0}, "`max_context_frames` must be at least 1"),
        ({"class_labels": 1}, "not trained on classes"),
        ({"num_frames": 0}, "at least 1"),
    ],
)
def test_bad_arguments(standard, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(make_modular(standard), **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number, got nan"),
        ({"condition_guidance_scale": "high"}, "`condition_guidance_scale` must be a finite number, got 'high'"),
        ({"action_guidance_scale": float("inf")}, "`action_guidance_scale` must be a finite number, got inf"),
        ({"guidance_interval": (0.5, 0.2)}, "`guidance_interval`="),
        ({"attention_kwargs": {"scale": float("nan")}}, "`scale` of `attention_kwargs` must be a finite number"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5"),
        ({"class_labels": 1.5}, "`class_labels` "),
    ],
)
def test_arguments_are_checked_before_the_history_is_encoded(standard, monkeypatch, arguments, message):
    pipe = make_modular(standard)
    monkeypatch.setattr(type(pipe.vae), "encode", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=message):
        predict(pipe, video=VIDEO, **arguments)


@pytest.mark.parametrize("value", [np.zeros((1, 4, 3, 4, 6)), [0.0]])
def test_latents_that_are_no_tensors(standard, value):
    for name in ("video_latents", "latents"):
        with pytest.raises(ValueError, match=f"`{name}` must be a `torch.Tensor`"):
            predict(make_modular(standard), **{name: value})


def test_output_is_checked_before_anything_is_computed(standard):
    pipe = make_modular(standard)
    pipe.transformer.register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match="got 'gif'"):
        predict(pipe, output_type="gif")
    with pytest.raises(ValueError, match="no transformer and no scheduler yet: call `load_components"):
        VideoGPTBlocks().init_pipeline()()
    pipe.update_components(vae=None)
    for arguments in ({"output_type": "pil"}, {"video": VIDEO}):
        with pytest.raises(ValueError, match="has no VAE"):
            predict(pipe, **arguments)
    other = AutoencoderKL(latent_channels=8, block_out_channels=(8,), norm_num_groups=4)
    other.encode = lambda *_, **__: pytest.fail("encoded")
    pipe.update_components(vae=other)
    for arguments in ({"output_type": "pil"}, {"video": VIDEO}):
        with pytest.raises(ValueError, match="The VAE's latents have 8 channels, the transformer takes 4"):
            predict(pipe, **arguments)


def test_a_busy_pipeline_of_blocks(standard):
    modular = make_modular(standard)
    history = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))

    def again(*_):
        with pytest.raises(RuntimeError, match="busy"):
            modular(video_latents=history, num_inference_steps=1)

    hook = standard.transformer.register_forward_hook(again)
    arguments = {"video_latents": history, "num_frames": 1, "num_inference_steps": 1, "output_type": "latent"}
    modular(**arguments)
    hook.remove()
    assert modular(**arguments, output="videos").shape[2] == 1
