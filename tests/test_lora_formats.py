"""LoRA files of other tools: what is exact is converted, the rest is refused by the name of its key."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import pipe_without_vae

from diffusers_videogpt import VideoGPTPipeline
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.lora_formats import KOHYA, PLAIN


LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "linear_in", "linear_out", "noisy_patch_embed", "proj_out"]
RANK, ALPHA = 4, 6


@pytest.fixture
def pipe(tiny_transformer):
    return pipe_without_vae(tiny_transformer)


@pytest.fixture
def make_lora(make_tiny_transformer, tmp_path):
    """Saves a LoRA of random weights in diffusers' form; returns its folder."""

    def make(name="lora", **options):
        torch.manual_seed(0)
        transformer = make_tiny_transformer()
        options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": LAYERS, "init_lora_weights": False} | options
        transformer.add_adapter(LoraConfig(**options))
        VideoGPTPipeline.save_lora_weights(
            tmp_path / name,
            get_peft_model_state_dict(transformer),
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
            trained_with={"fps": 12.0},
            header={"modelspec.date": "2026-11-28"},
        )
        return tmp_path / name

    return make


def weights_file(folder):
    return folder / "pytorch_lora_weights.safetensors"


def predict(pipe):
    return pipe(
        video_latents=torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1)),
        num_frames=4,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def with_lora(pipe, source, **options):
    pipe.load_lora_weights(source, **options)
    output = predict(pipe)
    pipe.unload_lora_weights()
    return output


def as_kohya(tensors, alpha=None):
    """As sd-scripts and musubi-tuner name them: dots become underscores, and α stands beside the factors."""
    renamed = {}
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix("transformer.").partition(".lora_")
        name = KOHYA + name.replace(".", "_")
        renamed[f"{name}.lora_{'down' if part == 'A.weight' else 'up'}.weight"] = tensor
        if alpha is not None:
            renamed[f"{name}.alpha"] = torch.tensor(float(alpha))
    return renamed


def as_plain(tensors, alpha=None):
    renamed = {key.replace("transformer.", PLAIN, 1): tensor for key, tensor in tensors.items()}
    if alpha is not None:
        names = {key.partition(".lora_")[0] for key in renamed}
        renamed |= {f"{name}.alpha": torch.tensor(float(alpha)) for name in names}
    return renamed


@pytest.mark.parametrize("rename", [as_kohya, as_plain])
def test_the_same_lora_by_other_names(pipe, make_lora, tmp_path, rename):
    """Also α that is no power of two of the rank: the tensors and the scale are the same, so the output is, bit for bit."""
    folder = make_lora()
    tensors = load_file(weights_file(folder))
    expected = with_lora(pipe, folder)
    renamed = rename(tensors, alpha=ALPHA)
    save_file(renamed, tmp_path / "other.safetensors")
    for source in (tmp_path / "other.safetensors", renamed):
        assert torch.equal(with_lora(pipe, source), expected)
    found, metadata = VideoGPTPipeline.lora_state_dict(renamed, return_lora_metadata=True)
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert metadata["transformer.lora_alpha"] == ALPHA and metadata["transformer.alpha_pattern"] == {}
    # Without α, the product is added as it is.
    assert torch.equal(with_lora(pipe, rename(tensors)), with_lora(pipe, make_lora("plain", lora_alpha=RANK)))
    assert (with_lora(pipe, rename(tensors)) - expected).abs().max() > 1e-3


def test_every_layer_has_an_alpha_and_a_rank_of_its_own(pipe, make_lora):
    folder = make_lora(rank_pattern={"to_v": 2}, alpha_pattern={"to_v": 5, "linear_in": 3})
    tensors = load_file(weights_file(folder))
    renamed = as_kohya(tensors, alpha=ALPHA)
    for key in renamed:
        if key.endswith(".alpha") and ("to_v" in key or "linear_in" in key):
            renamed[key] = torch.tensor(5.0 if "to_v" in key else 3.0)
    assert torch.equal(with_lora(pipe, renamed), with_lora(pipe, folder))


def test_names_of_the_authors_network(pipe):
    """Their LoRA on stacked projections, and on shift and scale in the other order, changes the weights alike."""
    generator = torch.Generator().manual_seed(0)
    dim, ffn = 32, pipe.transformer.transformer_blocks[0].ff.linear_out.in_features
    swapped = "final_layer.adaLN_modulation.1"
    shapes = {
        "llm.layers.0.self_attn.qkv_proj": (3 * dim, dim),
        "llm.layers.1.mlp.gate_up_proj": (2 * ffn, dim),
        "llm.layers.1.self_attn.o_proj": (dim, dim),
        swapped: (2 * dim, dim),
    }
    state_dict, changes = {}, {}
    for name, (size_out, size_in) in shapes.items():
        down, up = torch.randn(2, size_in, generator=generator), torch.randn(size_out, 2, generator=generator)
        flat = KOHYA + name.replace(".", "_")
        state_dict |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(1.0),
        }
        changes[name] = 0.5 * up @ down
    q, k, v = changes["llm.layers.0.self_attn.qkv_proj"].chunk(3)
    shift, scale = changes[swapped].chunk(2)
    expected = {
        "transformer_blocks.0.attn.to_q": q,
        "transformer_blocks.0.attn.to_k": k,
        "transformer_blocks.0.attn.to_v": v,
        "transformer_blocks.1.ff.linear_in": changes["llm.layers.1.mlp.gate_up_proj"],
        "transformer_blocks.1.attn.to_out.0": changes["llm.layers.1.self_attn.o_proj"],
        "norm_out.linear": torch.cat([scale, shift]),
    }
    before = {name: pipe.transformer.get_submodule(name).weight.clone() for name in expected}
    pipe.load_lora_weights(state_dict)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for name, change in expected.items():
        after = pipe.transformer.get_submodule(name).weight
        torch.testing.assert_close(after - before[name], change, atol=1e-5, rtol=0)
    plain = {key.replace(KOHYA, PLAIN): x for key, x in state_dict.items() if "qkv" in key}
    plain = {
        key.replace("llm_layers_0_self_attn_qkv_proj", "llm.layers.0.self_attn.qkv_proj"): x
        for key, x in plain.items()
    }
    found = VideoGPTPipeline.lora_state_dict(plain)
    assert len(found) == 6 and "transformer.transformer_blocks.0.attn.to_v.lora_B.weight" in found


@pytest.mark.parametrize(
    "options", [{}, {"lora_alpha": RANK}, {"use_rslora": True}, {"alpha_pattern": {"to_v": 1}}], ids=str
)
def test_to_the_plain_form_and_back(pipe, make_lora, tmp_path, options, capsys):
    folder = make_lora(**options)
    tensors = load_file(weights_file(folder))
    main(["convert", str(folder), str(tmp_path / "plain")])
    file = tmp_path / "plain" / "lora.safetensors"
    assert str(file) in capsys.readouterr().out
    plain = load_file(file)
    assert all(key.startswith(PLAIN) for key in plain)
    assert any(key.endswith(".alpha") for key in plain) == (options != {"lora_alpha": RANK})
    torch.testing.assert_close(with_lora(pipe, file), with_lora(pipe, folder), atol=1e-5, rtol=0)

    main(["convert", "--back", str(file), str(tmp_path / "back")])
    back = load_file(weights_file(tmp_path / "back"))
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key]) for key in tensors)
    torch.testing.assert_close(with_lora(pipe, tmp_path / "back"), with_lora(pipe, folder), atol=1e-5, rtol=0)
    with safe_open(weights_file(tmp_path / "back"), "numpy") as opened:
        header = opened.metadata()
    assert header["modelspec.date"] == "2026-11-28"
    assert json.loads(header["lora_adapter_metadata"])["trained_with.fps"] == 12.0


def test_what_the_plain_form_has_no_place_for(make_lora, tmp_path, capsys):
    folder = make_lora(use_dora=True, target_modules=["to_q"])
    with pytest.raises(ValueError, match=r"to_q\.lora_magnitude_vector \(DoRA\): merge it"):
        VideoGPTPipeline.export_lora_weights(folder, tmp_path / "plain.safetensors")
    assert not (tmp_path / "plain.safetensors").exists()
    with pytest.raises(ValueError, match="must end in .safetensors, got"):
        VideoGPTPipeline.export_lora_weights(folder, tmp_path / "plain.bin")
    with pytest.raises(SystemExit, match="--vae goes into a pipeline"):
        main(["convert", str(folder), str(tmp_path / "out"), "--vae", str(tmp_path)])


Q = "transformer_blocks.0.attn.to_q"
FACTORS = {f"{PLAIN}{Q}.lora_A.weight": torch.ones(2, 32), f"{PLAIN}{Q}.lora_B.weight": torch.ones(32, 2)}
REFUSALS = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "is a text encoder's",
    f"base_model.model.{Q}.lora_A.weight": "adapter_config.json",
    f"{KOHYA}transformer_blocks_0_attn_to_q.hada_w1_a": "another kind of adapter",
    f"{PLAIN}{Q}.lokr_w1": "another kind of adapter",
    f"{KOHYA}transformer_blocks_0_attn_to_q.lora_mid.weight": "another kind of adapter",
    f"{PLAIN}{Q}.diff_b": "another kind of adapter",
    f"{KOHYA}transformer_blocks_0_attn_to_q.dora_scale": "the axis that DoRA's norm",
    f"{PLAIN}{Q}.lora_B.bias": "trains a bias",
    f"{KOHYA}double_blocks_0_img_attn_qkv.lora_down.weight": "no such layer",
    f"{KOHYA}transformer_blocks_0_attn_to_qkv.lora_down.weight": "no such layer",
    f"{PLAIN}llm.layers.0.self_attn.q_proj.lora_A.weight": "no such layer",
    f"{PLAIN}llm.layers.0.self_attn.qkv_proj.lora_B.weight": "32 rows can't be those of 3 layers",
    f"{PLAIN}transformer_blocks.0.attn.to_k.lora_A.weight": "to_k lacks lora_B.weight",
    f"{PLAIN}transformer_blocks.0.attn.to_k.alpha": "to_k lacks lora_A.weight, lora_B.weight",
    f"{PLAIN}{Q}.lora_down.weight": "another key holds the same",
    f"{PLAIN}{Q}.lora_C.weight": "ends in none of lora_A.weight",
    f"unet.{Q}.lora_down.weight": "begins with none of diffusion_model.",
}


@pytest.mark.parametrize("key", REFUSALS)
def test_what_is_not_exact_is_refused_by_name(pipe, key):
    before = predict(pipe)
    tensor = torch.tensor(1.0) if key.endswith(".alpha") else torch.ones(32, 2)
    with pytest.raises(ValueError, match="can't be converted exactly") as refused:
        pipe.load_lora_weights(FACTORS | {key: tensor})
    assert REFUSALS[key] in str(refused.value)
    name = key if "lacks" not in REFUSALS[key] else "transformer_blocks.0.attn.to_k"
    assert name in str(refused.value)
    assert not hasattr(pipe.transformer, "peft_config") and torch.equal(predict(pipe), before)


@pytest.mark.parametrize(
    "alpha", [torch.ones(2), torch.tensor(float("nan")), torch.zeros(0)], ids=["two", "nan", "none"]
)
def test_alpha_is_one_finite_number(alpha):
    with pytest.raises(ValueError, match="α is one finite number"):
        VideoGPTPipeline.lora_state_dict(FACTORS | {f"{PLAIN}{Q}.alpha": alpha})


def test_alpha_is_not_told_twice(make_lora, tmp_path):
    tensors = as_plain(load_file(weights_file(make_lora())), alpha=ALPHA)
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 1})}
    save_file(tensors, tmp_path / "twice.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="tells its α twice"):
        VideoGPTPipeline.lora_state_dict(tmp_path / "twice.safetensors")


def test_a_converted_lora_of_another_width_is_refused_by_its_layers(pipe):
    wide = {key: torch.ones(2, 64) if "A" in key else torch.ones(64, 2) for key in FACTORS}
    with pytest.raises(ValueError, match=r"to_q\.lora_A\.weight is \(2, 64\), not \(2, 32\)"):
        pipe.load_lora_weights(wide)


def test_hotswap_takes_a_converted_lora(pipe, make_lora):
    folder = make_lora()
    pipe.load_lora_weights(make_lora("other", lora_alpha=2), adapter_name="mine")
    pipe.load_lora_weights(as_kohya(load_file(weights_file(folder)), alpha=ALPHA), adapter_name="mine", hotswap=True)
    swapped = predict(pipe)
    pipe.unload_lora_weights()
    torch.testing.assert_close(swapped, with_lora(pipe, folder), atol=1e-5, rtol=0)
