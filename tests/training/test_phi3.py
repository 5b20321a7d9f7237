"""Phi-3's decoder in our transformer, from the real `transformers` class, small and random."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM

from diffusers_videogpt.training.phi3 import load_phi3_decoder
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


NUM_TOKENS = 6
DECODER = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 48,
    "pos_embed_max_size": 16,
}
LONG_FACTOR = [1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": LONG_FACTOR,
    # Ours rotates by the long factors whatever the length, Phi-3 only beyond 4096 tokens.
    "short_factor": LONG_FACTOR,
}


def make_phi3(longrope=False, **changes) -> Phi3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    rope = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    if longrope:
        rope = rope | {"max_position_embeddings": 131072, "rope_parameters": LONGROPE}
    model = Phi3ForCausalLM(Phi3Config(**sizes | tokens | rope | changes)).eval()
    for parameter in model.parameters():  # norms too, which start as ones
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return model


def make_transformer(longrope=False, **changes) -> VideoGPTTransformerModel:
    rope = {"rope_long_factor": LONG_FACTOR if longrope else None}
    transformer = VideoGPTTransformerModel(**DECODER | rope | changes).eval()
    transformer.init_weights(torch.Generator().manual_seed(1))
    return transformer


def decode(transformer: VideoGPTTransformerModel, embeddings: torch.Tensor) -> torch.Tensor:
    """What the decoder alone makes of (B, T, D) tokens, each seeing those before it."""
    num_tokens = embeddings.shape[1]
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()[None, None]
    rotary_emb = transformer.rope(torch.arange(num_tokens)[None])
    for block in transformer.transformer_blocks:
        embeddings = block(embeddings, attention_mask=mask, rotary_emb=rotary_emb)
    return transformer.norm(embeddings)


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("longrope", [False, True])
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_the_decoder_computes_what_phi3_computes(tmp_path, longrope, max_shard_size):
    phi3, transformer = make_phi3(longrope), make_transformer(longrope)
    phi3.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("model*.safetensors"))) > 1) == (max_shard_size == "20KB")
    embeddings = torch.randn(2, NUM_TOKENS, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = phi3.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        assert not torch.allclose(decode(transformer, embeddings), expected, atol=0.1)
        load_phi3_decoder(transformer, tmp_path)
        torch.testing.assert_close(decode(transformer, embeddings), expected, atol=2e-6, rtol=1e-5)


def test_around_the_decoder_nothing_changes_but_the_noisy_patches(tmp_path):
    make_phi3().save_pretrained(tmp_path)
    transformer, before = make_transformer(), make_transformer().state_dict()
    load_phi3_decoder(transformer, tmp_path)
    for name, tensor in transformer.state_dict().items():
        if name.startswith("noisy_patch_embed."):
            assert not tensor.any(), name
        else:
            from_phi3 = name.startswith(("transformer_blocks.", "norm."))
            assert torch.equal(tensor, before[name]) != from_phi3, name


def test_the_weights_take_our_dtype(tmp_path):
    phi3 = make_phi3().to(torch.bfloat16)
    phi3.save_pretrained(tmp_path)
    transformer = make_transformer()
    load_phi3_decoder(transformer, tmp_path)
    assert transformer.norm.weight.dtype == torch.float32
    assert torch.equal(transformer.norm.weight, phi3.model.norm.weight.float())


@pytest.mark.parametrize(
    "theirs, ours, message",
    [
        ({}, {"num_layers": 3}, "`num_layers` is 2 there, 3 here"),
        ({}, {"ffn_dim": 64}, "`ffn_dim` is 48 there, 64 here"),
        ({"rms_norm_eps": 1e-6}, {}, "`norm_eps` is 1e-06 there, 1e-05 here"),
        ({}, {"rope_theta": 5000.0}, "`rope_theta` is 10000.0 there, 5000.0 here"),
        ({"longrope": True}, {}, r"`rope_long_factor` is \[1.0, .* there, None here"),
        (
            {"longrope": True},
            {"longrope": True, "rope_long_factor": [1.0] * 8},
            r"\[1.0, 1.5, .* there, \[1.0, 1.0, .* here",
        ),
        (
            {"longrope": True},
            {"longrope": True, "max_position_embeddings": 8192},
            "`max_position_embeddings` is 131072 there, 8192 here",
        ),
        ({"num_key_value_heads": 1}, {}, "`num_key_value_heads`: 1"),
        ({"partial_rotary_factor": 0.5}, {}, "`partial_rotary_factor`: 0.5"),
    ],
)
def test_another_decoder_is_refused_by_field(tmp_path, theirs, ours, message):
    make_phi3(**theirs).save_pretrained(tmp_path)
    transformer = make_transformer(**ours)
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_phi3_decoder(transformer, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in transformer.state_dict().items())


def test_tensors_that_do_not_fit_are_named(tmp_path):
    make_phi3().save_pretrained(tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    whole = load_file(tmp_path / "model.safetensors")

    change_weights(tmp_path, lambda tensors: tensors.update({name: whole[name][:, :-1].contiguous()}))
    with pytest.raises(ValueError, match=rf"{name} \[32, 47\] \(should be \[32, 48\]\)"):
        load_phi3_decoder(make_transformer(), tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load_phi3_decoder(make_transformer(), tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.update({name: whole[name], "model.layers.0.bias": torch.ones(2)}))
    with pytest.raises(ValueError, match="has unknown model.layers.0.bias"):
        load_phi3_decoder(make_transformer(), tmp_path)


def test_pickled_weights_are_not_read(tmp_path, malicious_pickle):
    make_phi3().config.save_pretrained(tmp_path)
    marker = tmp_path / "executed"
    (tmp_path / "pytorch_model.bin").write_bytes(malicious_pickle(marker))
    with pytest.raises(FileNotFoundError, match="has no model.safetensors .* Pickled weights are not read"):
        load_phi3_decoder(make_transformer(), tmp_path)
    assert not marker.exists()


def test_a_missing_shard_and_another_model_are_named(tmp_path):
    make_phi3().save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-"):
        load_phi3_decoder(make_transformer(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="holds no Phi-3 .* `model_type`: 'llama'"):
        load_phi3_decoder(make_transformer(), tmp_path)
