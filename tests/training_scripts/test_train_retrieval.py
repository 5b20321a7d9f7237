"""Retrieval as a user runs it: videos with captions in, an index that is searched by text out."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from run_scripts import TINY, run_script
from script_data import losses, save_text_encoder, write_captions

from diffusers_videogpt import VideoGPTForVideoRetrieval, VideoGPTTransformerModel
from diffusers_videogpt.commands.main import main


CAPTIONS = ["one red ball falls", "two blue boxes fall", "a box"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory, videos):
    return write_captions(tmp_path_factory.mktemp("captions"), videos, CAPTIONS, column="caption")


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"), "bert")


@pytest.fixture(scope="module")
def arguments(new_features, videos, captions, text_encoder):
    return [
        *new_features,
        *("--instance_data_root", videos, "--dataset_file", captions, "--caption_column", "caption"),
        *("--pretrained_text_encoder_path", text_encoder, "--projection_dim", 16, "--max_train_steps", 4),
    ]


def train(output_dir, *args, **kwargs):
    return run_script("train_retrieval.py", "--output_dir", output_dir, *args, **kwargs)


def initial_weights() -> torch.Tensor:
    transformer = VideoGPTTransformerModel(**TINY)
    transformer.init_weights(torch.Generator().manual_seed(0))
    return transformer.transformer_blocks[0].attn.to_q.weight


def test_from_captions_to_a_search(tmp_path, arguments, videos, captions, capsys):
    """Two processes go on from a checkpoint as one does; the result is scored, and makes an index that is searched."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, *arguments, "--num_clips", 2, "--train_batch_size", 4, "--checkpointing_steps", 2)
    resumed = ("--num_clips", 2, "--train_batch_size", 2, "--resume_from_checkpoint", one / "checkpoint-2")
    train(two, *arguments, *resumed, num_processes=2)
    assert losses(two) == pytest.approx(losses(one)[2:], abs=1e-5)
    pipes = [DiffusionPipeline.from_pretrained(folder) for folder in (one, two)]
    assert torch.equal(pipes[1].retriever.transformer.transformer_blocks[0].attn.to_q.weight, initial_weights())
    assert f"pipe(['{min(CAPTIONS)}']" in (one / "README.md").read_text() and (one / "loss_curve.png").exists()
    texts, paths = CAPTIONS, sorted(videos.iterdir())
    torch.testing.assert_close(pipes[0](texts, paths), pipes[1](texts, paths), atol=1e-4, rtol=0)

    scores = tmp_path / "scores.json"
    table = ["--dataset-file", str(captions), "--data", str(videos)]
    main(["evaluate", "retrieval", "--model", str(one), *table, "--output", str(scores)])
    assert "| text → video (3 in 7) |" in capsys.readouterr().out
    assert json.loads(scores.read_text())["video → text"]["num_queries"] == 7
    pytest.importorskip("faiss")
    main(["index", str(videos), "--model", str(one), "--output", str(tmp_path / "index")])
    main(["search", str(tmp_path / "index"), "two blue boxes fall", "--top", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3


def test_training_the_transformer_too(tmp_path, arguments):
    train(tmp_path, *arguments, "--train_transformer", "--train_batch_size", 4)
    retriever = VideoGPTForVideoRetrieval.from_pretrained(tmp_path, subfolder="retriever")
    assert not torch.allclose(retriever.transformer.transformer_blocks[0].attn.to_q.weight, initial_weights())


def test_resuming_minds_what_the_features_are_of(tmp_path, base, videos, captions, text_encoder, run_here, refusal_of):
    """Checkpoints hold the projections alone: their frozen trunk and the videos are known by their content."""
    trunk, data, out = (tmp_path / name for name in ("base", "videos", "out"))
    shutil.copytree(base, trunk)
    shutil.copytree(videos, data)
    given = [
        *("--output_dir", out, "--pretrained_model_name_or_path", trunk, "--instance_data_root", data),
        *("--dataset_file", captions, "--caption_column", "caption", "--pretrained_text_encoder_path", text_encoder),
        *("--height", 32, "--width", 32, "--max_num_frames", 4, "--num_validation_videos", 2, "--projection_dim", 16),
        *("--lr_warmup_steps", 1, "--train_batch_size", 2, "--checkpointing_steps", 1),
    ]
    run_here("train_retrieval.py", *given, "--max_train_steps", 1)
    resumed = [*given, "--resume_from_checkpoint", "latest", "--max_train_steps", 2]
    network = VideoGPTTransformerModel.from_pretrained(trunk / "transformer")
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.transformer_blocks[0].attn.to_q.weight.data.add_(1)
    network.save_pretrained(trunk / "transformer")
    said = refusal_of("train_retrieval.py", *resumed)
    assert "content.transformer: " in said and "content.cached: " not in said
    network.load_state_dict(weights)
    network.save_pretrained(trunk / "transformer")

    kept = {path: path.read_bytes() for path in data.iterdir()}
    for path, other in zip(kept, [*kept][1:] + [*kept][:1], strict=True):
        path.write_bytes(kept[other])
    said = refusal_of("train_retrieval.py", *resumed)
    assert "content.cached: " in said and "content.transformer: " not in said
    for path, content in kept.items():
        path.write_bytes(content)
    run_here("train_retrieval.py", *resumed)
    assert len(losses(out)) == 2
