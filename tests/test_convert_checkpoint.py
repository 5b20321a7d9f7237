"""The authors' checkpoint ↔ ours, on the golden one: what comes out, what comes back, and what is refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from run_scripts import run_file
from safetensors.torch import load_file, save_file
from transformers import Phi3Config

from diffusers_videogpt.convert_checkpoint import (
    HINT_TOKENS,
    _key_map,
    _to_reference,
    _write_safetensors,
    convert_config,
    convert_reference_checkpoint,
    convert_to_reference_checkpoint,
    find_hint_token_ids,
)
from diffusers_videogpt.pipeline_videogpt import VideoGPTPipeline
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


GOLDEN_DIR = Path(os.environ.get("VIDEOGPT_GOLDEN", Path(__file__).parent / "parity" / "golden"))
CASES = json.loads((GOLDEN_DIR / "cases.json").read_text())
TOKEN_IDS = [CASES["token_ids"][token] for token in HINT_TOKENS]
NORM = "llm.norm.weight"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN_DIR / "model.safetensors")


@pytest.fixture
def reference_dir(tmp_path) -> Path:
    """The golden checkpoint with a tokenizer, as the authors ship theirs."""
    folder = tmp_path / "authors"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN_DIR / name, folder / name)
    words = [{"id": i, "content": f"<|{i}|>", "special": True} for i in range(5)]
    hints = [{"id": i, "content": token, "special": True} for token, i in CASES["token_ids"].items()]
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": words + hints}))
    (folder / "special_tokens_map.json").write_text("{}")
    return folder


def save_reference(folder: Path, state_dict: dict[str, torch.Tensor], form: str) -> None:
    """Puts `state_dict` in place of the weights in `folder`: "safetensors" or "bin", in one file or in "shards"."""
    (folder / "model.safetensors").unlink()
    stem, suffix, save = (
        ("model", "safetensors", save_file) if "safe" in form else ("pytorch_model", "bin", torch.save)
    )
    if "shards" not in form:
        save(state_dict, folder / f"{stem}.{suffix}")
        return
    weight_map = {}
    for i in range(3):
        shard = dict(sorted(state_dict.items())[i::3])
        filename = f"{stem}-0000{i + 1}-of-00003.{suffix}"
        save(shard, folder / filename)
        weight_map |= dict.fromkeys(shard, filename)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def assert_same_tensors(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state_dict.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state_dict[name].dtype == tensor.dtype, name
        assert torch.equal(state_dict[name], tensor), name


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def test_converted_network_gives_golden(reference_dir, tmp_path):
    summary = convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    model = VideoGPTTransformerModel.from_pretrained(tmp_path / "ours" / "transformer")
    assert summary["num_parameters"] == model.num_parameters()
    assert summary["hint_token_ids"] == CASES["token_ids"]
    golden = load_file(GOLDEN_DIR / "cases.safetensors")
    noisy, clean, expected = (golden[f"infer.0.{x}"].transpose(0, 1)[None] for x in ("noisy", "clean", "cond"))
    output = model(noisy, golden["infer.0.timestep"], clean).sample
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_back_is_bit_exact(reference_dir, tmp_path, weights, form, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_reference(reference_dir, weights, form)
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    summary = convert_to_reference_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), weights)
    del weights["pos_embed"]  # fixed: neither counted nor, as it can be computed, kept
    assert summary["num_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert set(load_file(tmp_path / "ours" / "reference" / "token_table.safetensors")) == {"llm.embed_tokens.weight"}
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        assert (tmp_path / "back" / name).read_bytes() == (reference_dir / name).read_bytes()
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        "model_index.json",
        "reference",
        "scheduler",
        "transformer",
    }


@pytest.mark.parametrize("offset", [0.0, 5e-7])
def test_position_table_comes_back_as_it_was(reference_dir, tmp_path, weights, offset):
    """Not only the computed one: here in fp32 beside bf16 weights, and one number off by a rounding."""
    mixed = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    mixed["pos_embed"] = weights["pos_embed"].clone()
    mixed["pos_embed"][0, 5, 5] += offset
    assert torch.equal(mixed["pos_embed"], weights["pos_embed"]) == (offset == 0)
    save_reference(reference_dir, mixed, "safetensors")
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    convert_to_reference_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), mixed)


def test_written_file_is_that_of_the_library(tmp_path):
    tensors = {
        "a": torch.rand(3, 1).to(torch.bfloat16),  # 6 bytes: what follows is aligned only if it comes first
        "b": torch.rand(2, 3).T,
        "c": torch.rand((), dtype=torch.float64),
        "d": torch.rand(5).half(),
    }
    _write_safetensors(tmp_path / "ours.safetensors", tensors, read=tensors.get)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, tmp_path / "library.safetensors", metadata={"format": "pt"})
    assert_same_tensors(load_file(tmp_path / "ours.safetensors"), contiguous)
    headers = []
    for name in ("ours", "library"):
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        assert length % 8 == 0
        headers.append(json.loads(content[8 : 8 + length]))
    assert headers[0] == headers[1]


def test_dtype(reference_dir, tmp_path, weights):
    convert_reference_checkpoint(reference_dir, tmp_path / "ours", dtype=torch.bfloat16)
    ours = load_file(tmp_path / "ours" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    convert_to_reference_checkpoint(tmp_path / "ours", tmp_path / "back")
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), expected)


def test_small_shards_load(reference_dir, tmp_path):
    whole = convert_reference_checkpoint(reference_dir, tmp_path / "whole")
    shards = convert_reference_checkpoint(reference_dir, tmp_path / "shards", max_shard_size=100_000)
    assert len(whole["files"]) == 1 and len(shards["files"]) > 3
    assert all((tmp_path / "shards" / "transformer" / name).stat().st_size < 110_000 for name in shards["files"])
    models = [VideoGPTTransformerModel.from_pretrained(tmp_path / x / "transformer") for x in ("whole", "shards")]
    assert_same_tensors(models[1].state_dict(), models[0].state_dict())
    convert_to_reference_checkpoint(tmp_path / "shards", tmp_path / "back")
    assert_same_tensors(
        load_file(tmp_path / "back" / "model.safetensors"), load_file(reference_dir / "model.safetensors")
    )


def tiny_vae(latent_channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(latent_channels=latent_channels, block_out_channels=(8,), norm_num_groups=4)


def test_pipeline_with_and_without_vae(reference_dir, tmp_path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    summary = convert_reference_checkpoint(reference_dir, tmp_path / "with", vae=tmp_path / "vae")
    assert summary["vae"] == "AutoencoderKL"
    pipeline = VideoGPTPipeline.from_pretrained(tmp_path / "with")
    assert_same_tensors(pipeline.vae.state_dict(), vae.state_dict())

    assert convert_reference_checkpoint(reference_dir, tmp_path / "without")["vae"] is None
    assert json.loads((tmp_path / "without" / "model_index.json").read_text())["vae"] == [None, None]
    assert VideoGPTPipeline.from_pretrained(tmp_path / "without").vae is None
    assert VideoGPTPipeline.from_pretrained(tmp_path / "without", vae=vae).vae is vae


def test_model_index_is_what_the_pipeline_saves(reference_dir, tmp_path):
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    VideoGPTPipeline.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "again")
    ours, again = (json.loads((tmp_path / x / "model_index.json").read_text()) for x in ("ours", "again"))
    again.pop("_name_or_path", None)
    assert ours == again


def test_fine_tuned_model_goes_back(reference_dir, tmp_path, weights):
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    model = VideoGPTTransformerModel.from_pretrained(tmp_path / "ours" / "transformer")
    with torch.no_grad():
        model.hint_embed.weight[1] += 1.0
        model.norm.weight += 1.0
    model.save_pretrained(tmp_path / "tuned" / "transformer")
    with pytest.raises(FileNotFoundError, match="kept_dir"):
        convert_to_reference_checkpoint(tmp_path / "tuned", tmp_path / "back")
    convert_to_reference_checkpoint(tmp_path / "tuned", tmp_path / "back", kept_dir=tmp_path / "ours" / "reference")
    expected = dict(weights)
    expected[NORM] = weights[NORM] + 1.0
    expected["llm.embed_tokens.weight"] = weights["llm.embed_tokens.weight"].clone()
    expected["llm.embed_tokens.weight"][TOKEN_IDS[1]] += 1.0
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), expected)


def test_back_refuses_what_was_kept_of_another_network(reference_dir, tmp_path):
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    edit_config(tmp_path / "ours" / "reference", rms_norm_eps=1e-6)
    with pytest.raises(ValueError, match="another network.*norm_eps"):
        convert_to_reference_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_back_refuses_class_labels(reference_dir, tmp_path):
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    config = VideoGPTTransformerModel.load_config(tmp_path / "ours" / "transformer")
    shutil.rmtree(tmp_path / "ours" / "transformer")
    VideoGPTTransformerModel.from_config(config, num_classes=3).save_pretrained(tmp_path / "ours" / "transformer")
    with pytest.raises(ValueError, match="no place for class_embed.weight"):
        convert_to_reference_checkpoint(tmp_path / "ours", tmp_path / "back")


@pytest.mark.parametrize("filename", ["added_tokens.json", "tokenizer_config.json"])
def test_hint_ids_from_older_tokenizer_files(tmp_path, filename):
    ids = {"<img>": 32011, "</img>": 32012, "<|diffusion|>": 32010, "<other>": 3}
    decoder = {"added_tokens_decoder": {str(i): {"content": token} for token, i in ids.items()}}
    (tmp_path / filename).write_text(json.dumps(ids if filename == "added_tokens.json" else decoder))
    assert find_hint_token_ids(tmp_path) == (32011, 32012, 32010)


def test_hint_token_errors(reference_dir, tmp_path, weights):
    (reference_dir / "added_tokens.json").write_text(json.dumps({"<img>": 1}))
    with pytest.raises(ValueError, match="<img>.*tokenizer.json, added_tokens.json.*disagree"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    (reference_dir / "added_tokens.json").unlink()

    tokenizer = json.loads((reference_dir / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["id"] = len(weights["llm.embed_tokens.weight"])  # one behind the last row
    (reference_dir / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="rows, too few for the hint tokens' ids"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")

    token = tokenizer["added_tokens"].pop()["content"].replace("|", r"\|")
    (reference_dir / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=f"{token}.*tokenizer.json.*no such token"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")

    (reference_dir / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json: no JSON can be read here"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")

    (reference_dir / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def break_names(weights):
    del weights[NORM]
    weights["lm_head.weight"] = torch.zeros(3)


def break_shape(weights):
    weights[NORM] = weights[NORM][:-1].clone()


def break_qkv(weights):
    name = "llm.layers.0.self_attn.qkv_proj.weight"
    weights[name] = weights[name][:-2].clone()


def break_table(weights):
    weights["pos_embed"][0, -1, -1] += 1e-3


def break_table_with_nan(weights):
    weights["pos_embed"][0, -1, -1] = float("nan")


def break_table_size(weights):
    weights["pos_embed"] = weights["pos_embed"][:, :-1].clone()


def break_dtype(weights):
    weights[NORM] = weights[NORM].to(torch.int32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_names, "lacks llm.norm.weight and has unknown lm_head.weight"),
        (break_shape, r"llm.norm.weight \[\d+\] \(should be \[\d+\]\)"),
        (break_qkv, "llm.layers.0.self_attn.qkv_proj.weight"),
        (break_table, "`pos_embed` differs by 0.001"),
        (break_table_with_nan, "`pos_embed` differs by nan"),
        (break_table_size, "`pos_embed` of"),
        (break_dtype, "llm.norm.weight is no floating point tensor"),
    ],
)
def test_other_tensors_are_refused(reference_dir, tmp_path, weights, damage, message):
    damage(weights)
    save_reference(reference_dir, weights, "safetensors")
    with pytest.raises(ValueError, match=message):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_missing_files(reference_dir, tmp_path, weights):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        convert_reference_checkpoint(tmp_path / "nowhere", tmp_path / "ours")
    save_reference(reference_dir, weights, "bin shards")
    (reference_dir / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks pytorch_model-00002-of-00003.bin"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    (reference_dir / "pytorch_model-00001-of-00003.bin").unlink()
    (reference_dir / "pytorch_model-00003-of-00003.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    (reference_dir / "pytorch_model.bin.index.json").unlink()
    torch.save(weights, reference_dir / "pytorch_model.bin")
    (reference_dir / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")


def test_tensor_in_two_files(reference_dir, tmp_path, weights):
    save_reference(reference_dir, weights, "bin shards")
    shutil.copyfile(reference_dir / "pytorch_model-00001-of-00003.bin", reference_dir / "pytorch_model-old.bin")
    with pytest.raises(ValueError, match="pytorch_model-00001-of-00003.bin' and .*pytorch_model-old.bin"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch.save", "pickle", "safetensors", "truncated"])
def test_pickle_is_refused_and_not_executed(reference_dir, tmp_path, weights, form):
    marker = tmp_path / "executed"
    content = {**weights, "extra": Touch(marker)}
    (reference_dir / "model.safetensors").unlink()
    path = reference_dir / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "torch.save":
        torch.save(content, path)
    elif form == "truncated":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="damaged"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    assert not marker.exists() and not (tmp_path / "ours").exists()

    if form == "pickle":  # the bait is live
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_output_folder(reference_dir, tmp_path):
    output_dir = tmp_path / "ours"
    output_dir.mkdir()
    # An error while writing: nothing of what was written before stays.
    with pytest.raises(ValueError):
        convert_reference_checkpoint(reference_dir, output_dir, max_shard_size="a lot")
    assert list(output_dir.iterdir()) == []
    with pytest.raises(ValueError):
        convert_reference_checkpoint(reference_dir, tmp_path / "new", max_shard_size="a lot")
    assert not (tmp_path / "new").exists()

    convert_reference_checkpoint(reference_dir, output_dir)
    for convert, source in (
        (convert_reference_checkpoint, reference_dir),
        (convert_to_reference_checkpoint, output_dir),
    ):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            convert(source, output_dir)
    assert (output_dir / "model_index.json").is_file()


def test_unfit_vaes(reference_dir, tmp_path):
    tiny_vae(latent_channels=8).save_pretrained(tmp_path / "eight")
    with pytest.raises(ValueError, match="8 latent channels, the transformer 4"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours", vae=tmp_path / "eight")
    tiny_vae().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(OSError, match="safetensors"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours", vae=tmp_path / "pickled")
    with pytest.raises(ValueError, match="not an autoencoder"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours", vae=reference_dir)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours", vae=tmp_path / "nowhere")
    tiny_vae().save_pretrained(tmp_path / "huge")
    config = json.loads((tmp_path / "huge" / "config.json").read_text()) | {"layers_per_block": 10**9}
    (tmp_path / "huge" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`layers_per_block` must be a whole number in 1..100"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours", vae=tmp_path / "huge")
    tiny_vae().save_pretrained(tmp_path / "lacking")
    weights = tmp_path / "lacking" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match="lack encoder.conv_in.weight"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours", vae=tmp_path / "lacking")
    assert not (tmp_path / "ours").exists()


def test_config_of_any_transformers_version(weights):
    phi3_config = json.loads((GOLDEN_DIR / "config.json").read_text())
    factors = [1.0 + i for i in range(phi3_config["hidden_size"] // phi3_config["num_attention_heads"] // 2)]
    phi3_config["rope_scaling"] = {"type": "longrope", "short_factor": factors, "long_factor": factors}
    phi3_config["rope_theta"] = 5000.0
    expected = convert_config(phi3_config, weights)
    assert expected["rope_long_factor"] == factors and expected["rope_theta"] == 5000.0
    assert expected["pos_embed_max_size"] == CASES["pos_embed_max_size"]

    newer = Phi3Config(**phi3_config).to_dict()
    assert "rope_scaling" not in newer and newer["rope_parameters"]["rope_theta"] == 5000.0
    assert convert_config(newer, weights) == expected
    older = {**phi3_config, "rope_scaling": {**phi3_config["rope_scaling"], "type": "su"}}
    older["rope_scaling"]["original_max_position_embeddings"] = older.pop("original_max_position_embeddings")
    assert convert_config(older, weights) == expected
    plain = convert_config({**phi3_config, "rope_scaling": None}, weights)
    assert plain == {**expected, "rope_long_factor": None}


def test_what_a_config_leaves_out_is_as_in_phi3(weights):
    names = ("rms_norm_eps", "rope_theta", "original_max_position_embeddings")
    given = json.loads((GOLDEN_DIR / "config.json").read_text())
    bare = {name: value for name, value in given.items() if name not in names}
    defaults = {name: getattr(Phi3Config(), name) for name in names if name != "rope_theta"}
    assert convert_config(bare, weights) == convert_config({**given, **defaults, "rope_theta": 10000.0}, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 1}, "`num_key_value_heads`: 1"),
        ({"hidden_act": "gelu"}, "`hidden_act`: 'gelu'"),
        ({"partial_rotary_factor": 0.75}, "`partial_rotary_factor`: 0.75"),
        ({"model_type": "llama"}, "`model_type`: 'llama'"),
        ({"rope_scaling": {"type": "yarn", "factor": 32.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "long_mscale": 1.2}}, "long_mscale"),
        ({"rope_scaling": {"type": "longrope"}}, "lacks long_factor"),
        ({"intermediate_size": None}, "lacks intermediate_size"),
    ],
)
def test_other_networks_are_refused(reference_dir, tmp_path, changes, message):
    edit_config(reference_dir, **changes)
    with pytest.raises(ValueError, match=message):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")


def test_from_single_file(reference_dir, tmp_path):
    convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    our_dir = tmp_path / "ours" / "transformer"
    expected = VideoGPTTransformerModel.from_pretrained(our_dir)
    load = VideoGPTTransformerModel.from_single_file
    their_file, our_file = (str(next(folder.glob("*.safetensors"))) for folder in (reference_dir, our_dir))
    their_config = str(reference_dir / "config.json")

    for model in (
        load(their_file, original_config=their_config, tokenizer=reference_dir),
        load(their_file, config=str(our_dir), tokenizer=reference_dir),
        load(our_file, config=str(our_dir)),
    ):
        assert_same_tensors(model.state_dict(), expected.state_dict())
        arguments = {key: value for key, value in expected.config.items() if not key.startswith("_")}
        assert arguments.items() <= model.config.items()

    with pytest.raises(ValueError, match="pass `tokenizer`.*videogpt convert"):
        load(their_file, original_config=their_config)
    with pytest.raises(ValueError, match="pass `config`"):
        load(our_file, original_config=their_config)
    incomplete = load_file(our_file)
    del incomplete["norm.weight"]
    save_file(incomplete, tmp_path / "incomplete.safetensors")
    with pytest.raises(ValueError, match="lacks norm.weight"):
        load(str(tmp_path / "incomplete.safetensors"), config=str(our_dir))


MEASURE = """
import sys
from diffusers_videogpt.convert_checkpoint import convert_reference_checkpoint, convert_to_reference_checkpoint

def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

before = memory("VmRSS")
for folder in sys.argv[1:]:
    convert_reference_checkpoint(folder, folder + "/ours")
    convert_to_reference_checkpoint(folder + "/ours", folder + "/back")
    print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
def test_memory_is_a_few_tensors(reference_dir, tmp_path):
    """Both ways, mapped files included: a converter that holds the model, or a copy of it, needs its size or more."""
    config = {"num_layers": 14, "num_attention_heads": 16, "attention_head_dim": 32, "ffn_dim": 1536}
    model = VideoGPTTransformerModel(**config, pos_embed_max_size=32, rope_long_factor=None)
    edit_config(reference_dir, hidden_size=512, num_attention_heads=16, num_key_value_heads=16, rope_scaling=None)
    edit_config(reference_dir, intermediate_size=1536, num_hidden_layers=14)
    ours = model.state_dict()
    state_dict = {name: _to_reference(name, parts, read=ours.get) for name, parts in _key_map(14).items()}
    state_dict["pos_embed"] = model.pos_embed(32, 32).flatten(0, 1)[None]
    state_dict["llm.embed_tokens.weight"] = torch.rand(1000, 512)
    pickled_dir = shutil.copytree(reference_dir, tmp_path / "pickled")
    save_reference(reference_dir, state_dict, "safetensors")
    save_reference(pickled_dir, state_dict, "bin")
    size = sum(tensor.nbytes for tensor in state_dict.values())
    assert size > 180 * 2**20

    (tmp_path / "measure.py").write_text(MEASURE)
    growths = run_file(tmp_path / "measure.py", reference_dir, pickled_dir).stdout.split()
    assert len(growths) == 2
    assert int(growths[-1]) < size / 2, f"{growths} bytes for a checkpoint of {size}"


def test_a_summary_says_which_parameters_the_two_forms_do_not_share(reference_dir, tmp_path, weights):
    """The rows of the authors' token table that the network does not read; and what a pipeline without VAE lacks."""
    there = convert_reference_checkpoint(reference_dir, tmp_path / "ours")
    back = convert_to_reference_checkpoint(tmp_path / "ours", tmp_path / "back")
    num_rows, width = weights["llm.embed_tokens.weight"].shape
    unread = (num_rows - 3) * width
    assert unread == 832  # of the golden network
    assert back["num_parameters"] - there["num_parameters"] == unread
    for summary in (there, back):
        assert summary["num_parameters_kept"].startswith(f"{unread} ")
        assert f"the {num_rows - 3} rows of the" in summary["num_parameters_kept"]
    assert (
        there["vae"] is None
        and "takes and gives latents alone" in there["no_vae"]
        and "convert again" in there["no_vae"]
    )


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "4"),
        ("num_attention_heads", 0),
        ("hidden_size", 2.5),
        ("rms_norm_eps", [1]),
        ("rope_scaling", "longrope"),
    ],
)
def test_configs_that_no_network_can_have_are_refused_at_once(reference_dir, tmp_path, key, value):
    edit_config(reference_dir, **{key: value})
    with pytest.raises(ValueError, match=f"`{key}`"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {3: torch.zeros(3)}, "x"], ids=str)
def test_a_pickle_of_something_else_than_named_tensors(reference_dir, tmp_path, content):
    (reference_dir / "model.safetensors").unlink()
    torch.save(content, reference_dir / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a state dict"):
        convert_reference_checkpoint(reference_dir, tmp_path / "ours")
