"""LoRA on the pipeline: every way in, mixing, fusing, saving; and what does not fit, refused with nothing changed."""

import copy
import json
import os
from contextlib import contextmanager

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import pipe_without_vae

from diffusers_videogpt import VideoGPTPipeline
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.weights import hash_weights


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [*ATTENTION, "linear_in", "linear_out", "noisy_patch_embed", "clean_patch_embed"]


@pytest.fixture
def pipe(tiny_transformer):
    return pipe_without_vae(tiny_transformer)


@pytest.fixture
def make_lora(make_tiny_transformer, tmp_path):
    """Saves a LoRA of random weights; returns its folder."""

    def make(name="lora", seed=0, model=None, with_metadata=True, **options):
        torch.manual_seed(seed)
        transformer = make_tiny_transformer(**(model or {}))
        transformer.add_adapter(
            LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "init_lora_weights": False} | options)
        )
        layers = {key: 0.5 * tensor for key, tensor in get_peft_model_state_dict(transformer).items()}
        metadata = transformer.peft_config["default"].to_dict() if with_metadata else None
        VideoGPTPipeline.save_lora_weights(tmp_path / name, layers, transformer_lora_adapter_metadata=metadata)
        return tmp_path / name

    return make


def weights_file(folder):
    return folder / "pytorch_lora_weights.safetensors"


def edit(folder, change, metadata=None):
    """Changes the tensors of a saved LoRA, and may replace its metadata."""
    with safe_open(weights_file(folder), framework="pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors)
    if metadata is not None:
        header[LORA_ADAPTER_METADATA_KEY] = json.dumps(metadata)
    save_file(tensors, weights_file(folder), metadata=header)
    return folder


def predict(pipe, **kwargs):
    """Latents of two clips after a picture, with guidance: the second clip is predicted from the first."""
    arguments = {
        "video_latents": torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1)),
        "num_frames": 4,
        "num_inference_steps": 2,
        "guidance_scale": 1.5,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipe(**(arguments | kwargs)).frames


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_different(first, second):
    assert (first - second).abs().max() > 1e-2


# Loading


def test_file_folder_hub_id_and_dict_are_the_same_lora(pipe, make_lora, tmp_path):
    folder = make_lora(lora_alpha=4)  # α is the rank: what a dict, without metadata, stands for
    snapshot = tmp_path / "cache" / "models--someone--flying" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    os.link(weights_file(folder), snapshot / "pytorch_lora_weights.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (tmp_path / "outer").mkdir()
    make_lora("outer/inner", lora_alpha=4)
    make_lora("renamed", lora_alpha=4)
    weights_file(tmp_path / "renamed").rename(tmp_path / "renamed" / "flying.safetensors")

    base, outputs = predict(pipe), []
    for source, options in [
        (folder, {}),
        (str(weights_file(folder)), {}),
        (tmp_path / "outer", {"subfolder": "inner"}),
        (tmp_path / "renamed", {}),
        ("someone/flying", {"cache_dir": tmp_path / "cache", "weight_name": "pytorch_lora_weights.safetensors"}),
        (load_file(weights_file(folder)), {}),
    ]:
        pipe.load_lora_weights(source, **options)
        assert pipe.get_list_adapters() == {"transformer": ["default_0"]}
        outputs.append(predict(pipe))
        pipe.unload_lora_weights()
        assert torch.equal(predict(pipe), base)
    assert_different(outputs[0], base)
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])


def test_without_metadata_alpha_is_the_rank_of_each_layer(pipe):
    layers = {}
    for name, rank in (("to_q", 2), ("to_k", 2), ("to_v", 4)):
        key = f"transformer.transformer_blocks.0.attn.{name}"
        layers |= {f"{key}.lora_A.weight": torch.ones(rank, 32), f"{key}.lora_B.weight": torch.ones(32, rank)}
    pipe.load_lora_weights(layers)
    attn = pipe.transformer.transformer_blocks[0].attn
    assert [layer.scaling for layer in (attn.to_q, attn.to_k, attn.to_v)] == [{"default_0": 1.0}] * 3


@pytest.mark.parametrize(
    "options, scale",
    [
        ({}, 6 / 4),
        ({"use_rslora": True}, 6 / 2),
        ({"target_modules": EVERYTHING}, 6 / 4),
        ({"rank_pattern": {"to_v": 2}, "alpha_pattern": {"to_v": 1}}, 6 / 4),
    ],
)
def test_what_is_saved_is_what_was_trained(pipe, make_lora, make_tiny_transformer, options, scale):
    """Loading reproduces the adapter that PEFT made, with its scale; the file is safetensors with PEFT's metadata."""
    folder = make_lora(**options)
    with safe_open(weights_file(folder), framework="pt") as file:
        metadata = json.loads(file.metadata()[LORA_ADAPTER_METADATA_KEY])
    assert metadata["transformer.r"] == 4 and metadata["transformer.lora_alpha"] == 6

    base = predict(pipe)
    pipe.load_lora_weights(folder, adapter_name="mine")
    loaded = predict(pipe)
    assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling["mine"] == pytest.approx(scale)
    pipe.unload_lora_weights()

    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ATTENTION} | options)
    pipe.transformer.add_adapter(config)
    parameters = dict(pipe.transformer.named_parameters())
    with torch.no_grad():
        for key, tensor in load_file(weights_file(folder)).items():
            *layer, part, kind = key.removeprefix("transformer.").split(".")
            parameters[".".join([*layer, part, "default", kind])].copy_(tensor)
    assert_close(loaded, predict(pipe))
    assert_different(loaded, base)


def test_dora(pipe, make_lora):
    """W' = m (W + s B A) / ‖W + s B A‖, by hand on one layer."""
    folder = make_lora(use_dora=True, target_modules=ATTENTION)
    name = "transformer.transformer_blocks.0.attn.to_q"
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight.detach().clone()
    tensors = load_file(weights_file(folder))
    weight = weight + 1.5 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    weight = tensors[f"{name}.lora_magnitude_vector"][:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(3, 32)
    pipe.load_lora_weights(folder)
    assert_close(pipe.transformer.transformer_blocks[0].attn.to_q(x), x @ weight.T)


def test_bf16_pipeline_stays_bf16(pipe, make_lora):
    pipe.to(torch.bfloat16)
    base = predict(pipe)
    pipe.load_lora_weights(make_lora(target_modules=EVERYTHING))
    assert pipe.transformer.dtype == torch.bfloat16
    assert_different(predict(pipe), base)


# Using


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": EVERYTHING}], ids=str
)
def test_fuse_and_unfuse(pipe, make_lora, options):
    base = predict(pipe)
    pipe.load_lora_weights(make_lora(**options))
    adapted = predict(pipe)
    assert_different(adapted, base)

    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1 and pipe.fused_loras == {"default_0"}
    assert_close(predict(pipe), adapted, atol=1e-4)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert_close(predict(pipe), adapted, atol=1e-4)
    pipe.disable_lora()
    assert_close(predict(pipe), base)
    pipe.unload_lora_weights()
    assert_close(predict(pipe), base)
    assert not [key for key in pipe.transformer.state_dict() if "lora" in key or "base_layer" in key]


def test_a_scale_given_to_fusing_does_not_stay(pipe, make_lora):
    pipe.load_lora_weights(make_lora(), adapter_name="fly")
    pipe.set_adapters("fly", 0.8)
    adapted = predict(pipe)
    half = predict(pipe, attention_kwargs={"scale": 0.5})
    assert_different(adapted, half)
    pipe.fuse_lora(lora_scale=0.5, adapter_names=["fly"])
    assert_close(predict(pipe), half, atol=1e-4)
    pipe.unfuse_lora()
    assert_close(predict(pipe), adapted, atol=1e-4)


def test_two_adapters(pipe, make_lora):
    base = predict(pipe)
    pipe.load_lora_weights(make_lora("fly"), adapter_name="fly")
    fly = predict(pipe)
    pipe.load_lora_weights(make_lora("walk", seed=1, r=2, target_modules=["to_v", "linear_in"]), adapter_name="walk")
    assert pipe.get_active_adapters() == ["walk"]
    walk = predict(pipe)

    pipe.set_adapters(["fly", "walk"], [1.0, 0.0])
    assert_close(predict(pipe), fly)
    pipe.set_adapters(["fly", "walk"], [0.0, 1.0])
    assert_close(predict(pipe), walk)
    pipe.set_adapters(["fly", "walk"], [0.7, 0.5])
    mixed = predict(pipe)
    for other in (base, fly, walk):
        assert_different(mixed, other)
    pipe.fuse_lora()
    assert pipe.fused_loras == {"fly", "walk"}
    assert_close(predict(pipe), mixed, atol=1e-4)
    pipe.unfuse_lora()
    pipe.transformer.set_adapter("fly")
    pipe.fuse_lora(adapter_names=["walk", "fly"])  # at the weights they were given, though one was not active
    assert_close(predict(pipe), mixed, atol=1e-4)
    pipe.unfuse_lora()

    pipe.disable_lora()
    assert_close(predict(pipe), base)
    pipe.enable_lora()
    assert_close(predict(pipe), mixed, atol=1e-4)
    pipe.set_adapters("fly")
    pipe.delete_adapters("walk")
    assert pipe.get_list_adapters() == {"transformer": ["fly"]}
    assert_close(predict(pipe), fly, atol=1e-4)


def test_scale_of_a_call(pipe, make_lora):
    """It multiplies the adapter's weight for that call alone, in the stream as well."""
    base = predict(pipe)
    pipe.load_lora_weights(make_lora(), adapter_name="fly")
    full = predict(pipe)
    assert_close(predict(pipe, attention_kwargs={"scale": 1e-9}), base)
    half = predict(pipe, attention_kwargs={"scale": 0.5})
    assert_close(predict(pipe), full)
    pipe.set_adapters("fly", 0.5)
    assert_close(predict(pipe), half)

    pipe.set_adapters("fly")
    arguments = {
        "num_frames": 2,
        "num_inference_steps": 2,
        "output_type": "latent",
        "attention_kwargs": {"scale": 0.5},
    }
    arguments["video_latents"] = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with pipe.stream(generator=torch.Generator().manual_seed(0), guidance_scale=1.5, **arguments) as stream:
        assert_close(next(stream).frames, half[:, :, :2])

    pipe.set_adapters("fly", 0.5)
    assert_close(predict(pipe, attention_kwargs={"scale": 0}), base)
    assert_close(predict(pipe), half)


@pytest.mark.parametrize("targets", [ATTENTION, ["clean_patch_embed"]], ids=["attention", "clean patches alone"])
def test_cached_rollout_uses_the_adapter(pipe, make_lora, targets):
    """The history is encoded once a clip into the cache; an adapter of the clean patches acts nowhere else."""
    base = predict(pipe)
    pipe.load_lora_weights(make_lora(target_modules=targets))
    cached = predict(pipe)
    assert_close(cached, predict(pipe, use_kv_cache=False))
    assert_different(cached, base)


def test_hotswap(pipe, make_lora):
    second = make_lora("second", seed=1, lora_alpha=2)
    pipe.load_lora_weights(second)
    expected = predict(pipe)
    pipe.unload_lora_weights()

    pipe.load_lora_weights(make_lora("first"), adapter_name="mine")
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.lora_A["mine"].weight
    pipe.load_lora_weights(second, adapter_name="mine", hotswap=True)
    assert pipe.transformer.transformer_blocks[0].attn.to_q.lora_A["mine"].weight is weight  # swapped in place
    assert_close(predict(pipe), expected)


def test_hotswap_to_a_lower_rank_when_prepared(pipe, make_lora):
    second = make_lora("second", seed=1, r=2)
    pipe.load_lora_weights(second)
    expected = predict(pipe)
    pipe.unload_lora_weights()

    pipe.enable_lora_hotswap(target_rank=4)
    pipe.load_lora_weights(make_lora("first"), adapter_name="mine")
    pipe.load_lora_weights(second, adapter_name="mine", hotswap=True)
    assert_close(predict(pipe), expected)
    with pytest.raises(ValueError, match=r"attn\.to_q is of rank 8, at most 4 is loaded"):
        pipe.load_lora_weights(make_lora("third", r=8), adapter_name="mine", hotswap=True)
    assert_close(predict(pipe), expected)


def test_merged_pipeline(pipe, make_lora, tmp_path):
    """Fused and saved, it is a pipeline like any other."""
    pipe.load_lora_weights(make_lora())
    adapted = predict(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "merged")
    keys = load_file(tmp_path / "merged" / "transformer" / "diffusion_pytorch_model.safetensors").keys()
    assert not [key for key in keys if "lora" in key or "base_layer" in key]
    merged = VideoGPTPipeline.from_pretrained(tmp_path / "merged", vae=None)
    assert not [module for module in merged.transformer.modules() if isinstance(module, BaseTunerLayer)]
    assert_close(predict(merged), adapted, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_pipeline_is_not_saved_with_its_lora_layers(pipe, make_lora, tmp_path, fused):
    """diffusers would write keys that come back as random weights."""
    pipe.load_lora_weights(make_lora())
    if fused:
        pipe.fuse_lora()
    with pytest.raises(ValueError, match="`fuse_lora\\(\\)`, then `unload_lora_weights\\(\\)`"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# Refusing


def make_nan(tensors):
    tensors["transformer.transformer_blocks.1.attn.to_k.lora_B.weight"][3, 1] = float("nan")


def drop_a_factor(tensors):
    del tensors["transformer.transformer_blocks.1.attn.to_k.lora_B.weight"]


def make_the_factors_differ(tensors):
    key = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    tensors[key] = tensors[key][:3].clone()


def rename(old, new):
    def change(tensors):
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


UNFIT = {
    "another width": (
        {"model": {"num_attention_heads": 4}},
        None,
        r"to_\w\.lora_A\.weight is \(4, 64\), not \(4, 32\)",
    ),
    "another depth": (
        {"model": {"num_layers": 3}},
        None,
        r"transformer_blocks\.2\.attn\.to_\w.*: this model has no such",
    ),
    "other channels": (
        {"model": {"in_channels": 8}, "target_modules": ["noisy_patch_embed"]},
        None,
        r"noisy_patch_embed\.lora_A\.weight is \(4, 8, 2, 2\), not \(4, 4, 2, 2\)",
    ),
    "another model": (
        {},
        rename("attn.to_q", "attn1.q_proj"),
        r"transformer_blocks\.0\.attn1\.q_proj: this model has no",
    ),
    "a layer that is not linear": (
        {},
        rename("attn.to_q", "norm1"),
        r"blocks\.0\.norm1: this model has no such linear",
    ),
    "no LoRA at all": (
        {},
        rename(".lora_", "."),
        r"no LoRA of a Video-GPT transformer: transformer\.transformer_blocks",
    ),
    "another component's weights": (
        {},
        lambda tensors: rename("transformer.", "unet.")(tensors) or rename(".lora_", ".")(tensors),
        r"no LoRA of a Video-GPT transformer: unet\.transformer_blocks",
    ),
    "another component's too": (
        {},
        lambda tensors: tensors.update({f"unet.{key}": tensor.clone() for key, tensor in tensors.items()}),
        r"no LoRA of a Video-GPT transformer: unet\.transformer\.transformer_blocks",
    ),
    "trained biases": ({"lora_bias": True}, None, r"no LoRA.*attn\.to_\w.*lora_B\.bias"),
    "another kind of adapter": ({}, rename("lora_A", "lokr_w1"), r"no LoRA.*attn\.to_\w.*lokr_w1\.weight"),
    "NaN": ({}, make_nan, r"blocks\.1\.attn\.to_k\.lora_B\.weight has NaN or infinite values"),
    "a factor missing": ({}, drop_a_factor, r"blocks\.1\.attn\.to_k lacks lora_B\.weight"),
    "factors of two ranks": ({}, make_the_factors_differ, r"to_q\.lora_B\.weight is \(32, 4\), not \(32, 3\)"),
}
UNRELATED = {
    "no prefix": rename("transformer.transformer_blocks", "transformer_blocks"),
    "another component": rename("transformer.", "unet."),
    "empty": dict.clear,
}


@pytest.mark.parametrize("with_another", [False, True], ids=["first", "beside another"])
@pytest.mark.parametrize("case", UNFIT)
def test_unfit_is_refused_with_names(pipe, make_lora, case, with_another):
    options, change, message = UNFIT[case]
    folder = make_lora(**options)
    if change is not None:
        edit(folder, change)
    if with_another:
        pipe.load_lora_weights(make_lora("another", seed=3), adapter_name="another")
    assert_refused(pipe, message, folder, adapter_name="mine")


@pytest.mark.parametrize("with_another", [False, True], ids=["first", "beside another"])
@pytest.mark.parametrize("case", UNRELATED)
def test_a_lora_of_other_models_alone_is_logged_as_diffusers_does(pipe, make_lora, caplog, case, with_another):
    folder = edit(make_lora(), UNRELATED[case])
    if with_another:
        pipe.load_lora_weights(make_lora("another", seed=3), adapter_name="another")
    with unchanged(pipe):
        pipe.load_lora_weights(folder, adapter_name="mine")
    assert "No LoRA keys associated to VideoGPTTransformerModel found with the prefix='transformer'" in caplog.text
    with pytest.raises(SystemExit, match=r"videogpt predict: --lora: '.*' holds no LoRA of a Video-GPT transformer, "):
        main(["predict", "--lora", str(folder)])


@contextmanager
def unchanged(pipe):
    """The model stays as it was: its modules, adapters, weights and output."""
    before, output = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}, predict(pipe)
    adapters, active = pipe.get_list_adapters(), pipe.get_active_adapters()
    yield
    after = pipe.transformer.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert (pipe.get_list_adapters(), pipe.get_active_adapters()) == (adapters, active)
    assert torch.equal(predict(pipe), output)


def assert_refused(pipe, message, source, **kwargs):
    with unchanged(pipe), pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(source, **kwargs)


def test_another_base_is_told(pipe, make_lora, make_tiny_transformer, caplog):
    """By the hash in the file, if training here has put it there; the base may have been in bfloat16."""
    tensors, metadata = VideoGPTPipeline.lora_state_dict(make_lora(), return_lora_metadata=True)
    layers = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    config = {name.removeprefix("transformer."): value for name, value in metadata.items()}
    folder = make_lora("told")

    def load(weights_hash, architecture="video-gpt/lora", **where):
        header = {"modelspec.architecture": architecture, "ss_base_model_version": "balls"}
        header |= {} if weights_hash is None else {"ss_new_sd_model_hash": weights_hash}
        name = where.get("weight_name")
        how = {"transformer_lora_adapter_metadata": config, "weight_name": name}
        VideoGPTPipeline.save_lora_weights(folder, layers, header=header, **how)
        caplog.clear()
        pipe.load_lora_weights(folder, **where)
        return caplog.text

    own = hash_weights(pipe.transformer)[:16]
    half = hash_weights(copy.deepcopy(pipe.transformer).to(torch.bfloat16))[:16]
    for known in (own, half, None, own):  # the last three beside other LoRAs
        assert "was trained on" not in load(known)
    said = load("0123456789abcdef")
    assert (
        f"The LoRA '{folder}' was trained on 'balls', whose weights (hash 0123456789abcdef) are not those of" in said
    )
    assert "was trained on 'balls'" in load("0123456789abcdef", weight_name="mine.safetensors")
    assert "was trained on" not in load("0123456789abcdef", architecture="another tool's")
    pipe.unload_lora_weights()
    pipe.transformer.to(torch.bfloat16)
    assert "was trained on" not in load(own)  # its fp32 weights are not there to be compared


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"r": 8, "lora_alpha": 8}, r"metadata says rank 8.*attn\.to_\w.*is of rank 4"),
        ({"r": 4, "init_lora_weights": "pissa"}, "'pissa'`, which changed the base weights"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(pipe, make_lora, metadata, message):
    metadata = {f"transformer.{key}": value for key, value in metadata.items()}
    assert_refused(pipe, message, edit(make_lora(), lambda tensors: None, metadata))


def test_metadata_of_a_newer_peft_is_read(pipe, make_lora):
    """Options not known here don't matter; what is not said is PEFT's default."""
    metadata = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.from_the_future": True}
    pipe.load_lora_weights(edit(make_lora(), lambda tensors: None, metadata), adapter_name="mine")
    assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling["mine"] == 0.5


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({}, {"r": 2}, r"attn\.to_\w.*is of rank 2, 4 is loaded"),
        ({}, {"r": 8}, r"attn\.to_\w.*is of rank 8, 4 is loaded"),
        ({}, {"target_modules": ["to_q", "linear_in"]}, r"to_\w.* is not in the new one.*and \d more"),
        ({"target_modules": ["to_q"]}, {"target_modules": ["to_q", "to_k"]}, r"attn\.to_k is not in the loaded one"),
        ({}, {"model": {"num_attention_heads": 4}}, r"to_\w\.lora_A\.weight is \(4, 64\), not \(4, 32\)"),
        ({}, {"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, {"use_dora": True}, "without DoRA"),
        ({"alpha_pattern": {"to_v": 1}}, {"alpha_pattern": {"to_v": 1}}, "one rank and one α"),
    ],
)
def test_hotswap_of_what_differs_is_refused(pipe, make_lora, first, second, message):
    pipe.load_lora_weights(make_lora("first", **first), adapter_name="mine")
    assert_refused(pipe, message, make_lora("second", seed=1, **second), adapter_name="mine", hotswap=True)


def test_hotswap_beside_a_name_that_contains_it_is_refused(pipe, make_lora):
    """PEFT finds an adapter's keys by substring, and would set the other's weights to zero."""
    pipe.load_lora_weights(make_lora("first"), adapter_name="fly")
    pipe.load_lora_weights(make_lora("first"), adapter_name="fly2")
    assert_refused(pipe, "would clear 'fly2'", make_lora("second", seed=1), adapter_name="fly", hotswap=True)
    assert_refused(pipe, "none is named 'flie'", make_lora("second", seed=1), adapter_name="flie", hotswap=True)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "lora.pt", "disguised.safetensors"])
@pytest.mark.parametrize("form", ["file", "folder", "weight_name"])
def test_a_pickle_is_refused_unopened(pipe, tmp_path, name, form):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "folder").mkdir()
    torch.save(Bomb(), tmp_path / "folder" / name)
    source = {"file": tmp_path / "folder" / name}.get(form, tmp_path / "folder")
    options = {"weight_name": name} if form == "weight_name" else {}
    assert_refused(pipe, name.replace(".", r"\."), source, **options)
    assert not (tmp_path / "exploded").exists()


def test_what_can_not_be_read_is_named(pipe, make_lora, tmp_path):
    assert_refused(pipe, "nowhere", tmp_path / "nowhere")
    assert_refused(pipe, "nobody/nothing", "nobody/nothing", weight_name="lora.safetensors")
    (tmp_path / "empty").mkdir()
    assert_refused(pipe, "0 safetensors files.*holds nothing", tmp_path / "empty")
    for name in ("one", "two"):
        save_file({"x": torch.zeros(1)}, tmp_path / "empty" / f"{name}.safetensors")
    assert_refused(pipe, r"2 safetensors files.*one\.safetensors; two\.safetensors", tmp_path / "empty")
    folder = make_lora()
    weights_file(folder).write_bytes(weights_file(folder).read_bytes()[:500])
    assert_refused(pipe, "No LoRA could be read from", folder)


def test_names_that_can_not_be_used(pipe, make_lora):
    folder = make_lora()
    assert_refused(pipe, "can't have a dot, got 'v1.0'", folder, adapter_name="v1.0")
    pipe.load_lora_weights(folder, adapter_name="fly")
    assert_refused(pipe, "fly already in use", folder, adapter_name="fly")
    with pytest.raises(ValueError, match="walk"):
        pipe.set_adapters(["fly", "walk"])


def test_fused_projections_are_refused(pipe, make_lora):
    pipe.transformer.fuse_qkv_projections()
    assert_refused(pipe, "unfuse_qkv_projections", make_lora())


def test_projections_are_not_fused_over_a_lora(pipe, make_lora):
    pipe.load_lora_weights(make_lora())
    adapted = predict(pipe)
    with pytest.raises(ValueError, match="would drop what the LoRAs add"):
        pipe.transformer.fuse_qkv_projections()
    assert torch.equal(predict(pipe), adapted)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.transformer.fuse_qkv_projections()
    assert_close(predict(pipe), adapted, atol=1e-4)


def test_what_is_switched_off_is_not_fused(pipe, make_lora):
    """PEFT takes fused LoRAs out by itself where they are switched off."""
    pipe.load_lora_weights(make_lora())
    adapted = predict(pipe)
    pipe.disable_lora()
    with pytest.raises(ValueError, match="switched off.*`enable_lora`"):
        pipe.fuse_lora()
    pipe.enable_lora()
    assert_close(predict(pipe), adapted, atol=0)


def test_while_fused(pipe, make_lora):
    """Nothing that would be without effect, or could not be undone."""
    folder = make_lora()
    with pytest.raises(ValueError, match=r"was to fuse \[\], but \[\] are loaded"):
        pipe.fuse_lora()
    pipe.load_lora_weights(folder, adapter_name="fly")
    pipe.load_lora_weights(folder, adapter_name="walk")
    with pytest.raises(ValueError, match=r"was to fuse \['run'\], but \['fly', 'walk'\] are loaded"):
        pipe.fuse_lora(adapter_names=["run"])
    adapted = predict(pipe)
    pipe.fuse_lora()
    for refused in (
        lambda: pipe.fuse_lora(),
        lambda: pipe.set_adapters("fly", 0.5),
        lambda: pipe.delete_adapters("walk"),
        lambda: pipe.disable_lora(),
        lambda: pipe.load_lora_weights(folder),
    ):
        with pytest.raises(ValueError, match=r"\['walk'\] are fused: call `unfuse_lora`"):
            refused()
    assert_close(predict(pipe), adapted, atol=1e-4)


def test_saving_refuses(tmp_path):
    layers = {"proj_out.lora_A.weight": torch.zeros(1, 32)}
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is empty"):
        VideoGPTPipeline.save_lora_weights(tmp_path / "new", {})
    with pytest.raises(ValueError, match="is a file"):
        VideoGPTPipeline.save_lora_weights(tmp_path / "file", layers)
    with pytest.raises(ValueError, match=r"\.safetensors, got 'lora\.bin'"):
        VideoGPTPipeline.save_lora_weights(tmp_path / "new", layers, weight_name="lora.bin")
    with pytest.raises(ValueError, match="`safe_serialization` must be `True`, got False"):
        VideoGPTPipeline.save_lora_weights(tmp_path / "new", layers, safe_serialization=False)
    VideoGPTPipeline.save_lora_weights(tmp_path / "new", layers, is_main_process=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "metadata, message",
    [
        ([1], "is a list, not an object"),
        ("x", "is a str, not an object"),
        ({"transformer.r": "x"}, "`r` must be a whole number"),
        ({"transformer.lora_alpha": None}, "`lora_alpha` must be a finite number"),
        ({"transformer.lora_alpha": float("nan")}, "`lora_alpha` must be a finite number"),
        ({"transformer.use_rslora": "yes"}, "`use_rslora` .* must be true or false"),
        ({"transformer.rank_pattern": [1]}, "`rank_pattern` .* must map layers to numbers"),
        ({"transformer.alpha_pattern": 3}, "`alpha_pattern` .* must map layers to numbers"),
        ({"transformer.alpha_pattern": {"to_q": "x"}}, "`alpha_pattern of to_q` must be a finite number"),
        ({"transformer.rank_pattern": {"(": 4}}, "names '\\(', no pattern"),
    ],
    ids=str,
)
def test_metadata_of_another_shape_is_refused(pipe, make_lora, metadata, message):
    if isinstance(metadata, dict):
        metadata = {"transformer.r": 4} | metadata
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(edit(make_lora(), lambda tensors: None, metadata))
    assert not hasattr(pipe.transformer, "peft_config")


def test_deeply_nested_metadata_and_whole_numbers_are_refused(pipe, make_lora):
    folder = make_lora()
    tensors = load_file(weights_file(folder))
    save_file(tensors, weights_file(folder), metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: "[" * 10**5})
    with pytest.raises(ValueError, match="No LoRA could be read"):
        pipe.load_lora_weights(folder)
    first = next(iter(tensors))
    with pytest.raises(ValueError, match="holds torch.int32, no floating point numbers"):
        pipe.load_lora_weights(tensors | {first: tensors[first].int()})
