"""Masks, positions and the position table are the authors'."""

import pytest
import torch
from golden_cases import CASES, GOLDEN_DIR, golden_tensors, load_golden_model, training_batch
from safetensors import safe_open
from torch.nn.attention.flex_attention import create_mask

from diffusers_videogpt.clips import PADDING, ClipLayout, make_clip_layout


TRAIN_SAMPLES = [(case, sample) for case, train in enumerate(CASES["train"]) for sample in range(len(train["clips"]))]
INFER_CASES = range(len(CASES["infer"]))
with safe_open(GOLDEN_DIR / "cases.safetensors", framework="pt") as file:
    POSITION_TABLES = [name for name in file.keys() if name.startswith("pos_embed.")]  # noqa: SIM118


def authors_order(layout: ClipLayout, sample: int) -> torch.Tensor:
    """Indices of the real tokens of `sample` as the authors line them up: NS(1), CL(1), NS(2), …"""
    stream, clip, position = (x[sample].tolist() for x in (layout.stream, layout.clip, layout.position_ids))
    real = [token for token in range(layout.num_tokens) if stream[token] != PADDING]
    # NOISY is the greater of the two streams.
    return torch.tensor(sorted(real, key=lambda token: (clip[token], -stream[token], position[token])))


def assert_golden_layout(layout: ClipLayout, sample: int, name: str) -> None:
    order = authors_order(layout, sample)
    expected_mask = golden_tensors()[f"{name}.mask"]
    size = layout.num_tokens
    sparse_mask = create_mask(layout.block_mask.mask_mod, layout.batch_size, 1, size, size, device="cpu")

    assert torch.equal(layout.position_ids[sample, order], golden_tensors()[f"{name}.position_ids"])
    assert torch.equal(layout.dense_mask[sample, 0][order][:, order], expected_mask)
    assert torch.equal(sparse_mask[sample, 0][order][:, order], expected_mask)


@pytest.mark.parametrize(("case", "sample"), TRAIN_SAMPLES)
def test_training_layout(case, sample):
    assert_golden_layout(training_batch(case).layout, sample, f"train.{case}.{sample}")


@pytest.mark.parametrize("case", INFER_CASES)
def test_history_and_clip_layout(case):
    infer = CASES["infer"][case]
    layout = make_clip_layout(
        [infer["history"], infer["generated"]],
        (infer["latent_height"] // 2, infer["latent_width"] // 2),
        noisy=slice(-1, None),
    )

    assert_golden_layout(layout, 0, f"infer.{case}")


@pytest.mark.parametrize("name", POSITION_TABLES)
def test_position_table(name):
    height, width = map(int, name.removeprefix("pos_embed.").split("x"))

    table = load_golden_model().pos_embed(height // 2, width // 2).flatten(0, 1)

    torch.testing.assert_close(table, golden_tensors()[name].view_as(table), atol=1e-6, rtol=0)


def test_position_table_of_the_checkpoint():
    with safe_open(GOLDEN_DIR / "model.safetensors", framework="pt") as file:
        expected = file.get_tensor("pos_embed")[0]
    size = CASES["pos_embed_max_size"]

    table = load_golden_model().pos_embed(size, size).flatten(0, 1)

    torch.testing.assert_close(table, expected, atol=1e-6, rtol=0)
