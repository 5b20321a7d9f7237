import argparse
import csv
import json
import runpy
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from filelock import FileLock
from run_scripts import SCRIPTS, run_script

from diffusers_videogpt.data import workers
from diffusers_videogpt.evaluation.autoencoder import colour_units, latent_statistics
from diffusers_videogpt.video_io import write_video


SCRIPT = SCRIPTS / "train_autoencoder.py"
TOY = {
    "resolution": 16,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "frames_per_video": 2,
    "train_batch_size": 2,
    "lr_warmup_steps": 2,
    "checkpointing_steps": 10,
    "num_eval_videos": 2,
}


def arguments(**options):
    return ["--block_out_channels", "8", "8", *(f"--{name}={value}" for name, value in (TOY | options).items())]


def train(output_dir, *more, **options):
    return run_script(SCRIPT.name, "--output_dir", output_dir, *arguments(**options), *more, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("vae")
    done = train(output_dir, max_train_steps=20)
    assert done.returncode == 0, done.stderr
    return output_dir, done.stdout


def frames_of_unseen_scenes():
    from diffusers_videogpt.worlds import simulate

    frames = np.concatenate([simulate(seed=seed, size=16).frames for seed in range(2)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1


def test_result_is_an_autoencoder_with_a_report(trained):
    output_dir, printed = trained
    vae = AutoencoderKL.from_pretrained(output_dir)
    assert (output_dir / "diffusion_pytorch_model.safetensors").is_file()
    pixels = torch.zeros(1, 3, 16, 16)
    latents = vae.encode(pixels).latent_dist.mean
    assert latents.shape == (1, 4, 8, 8) and vae.decode(latents).sample.shape == pixels.shape
    assert vae.config.shift_factor is None and vae.config.scaling_factor == 1
    report = json.loads((output_dir / "latents.json").read_text())
    assert report["num_frames"] == 48 and len(report["objects_kept"]) == 4
    assert "2 unseen videos" in printed and f"correlation {report['eigenvalues'][0]:.3f}, " in printed
    assert "objects kept at noise 0.3 in " in printed  # a gate that 20 steps do not pass


def test_latents_of_unseen_scenes_are_white(trained):
    vae = AutoencoderKL.from_pretrained(trained[0])
    with torch.no_grad():
        latents = vae.encode(frames_of_unseen_scenes()).latent_dist.mean * vae.config.scaling_factor
    values = latents.transpose(0, 1).flatten(1)
    assert torch.allclose(values.mean(dim=1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(torch.cov(values), torch.eye(4), atol=2e-3)


def tiny_autoencoder(**config):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks, **config).eval()


@torch.no_grad()
def test_whitening_changes_the_latents_alone():
    config = {"scaling_factor": 0.2, "shift_factor": 0.3, "latents_mean": [1.0] * 4, "latents_std": [2.0] * 4}
    vae, pixels = tiny_autoencoder(**config), frames_of_unseen_scenes()
    vae.quant_conv.weight[1] = vae.quant_conv.weight[0] + 0.3 * vae.quant_conv.weight[1]  # correlated
    vae.quant_conv.bias.normal_()
    before = vae.encode(pixels).latent_dist
    statistics = latent_statistics(before.parameters, 4)
    assert statistics.eigenvalues[0] < 0.5
    runpy.run_path(str(SCRIPT))["whiten_latents"](vae, statistics)
    after = vae.encode(pixels).latent_dist
    assert torch.allclose(vae.decode(after.mean).sample, tiny_autoencoder().decode(before.mean).sample, atol=1e-5)
    white = latent_statistics(after.parameters, 4)
    assert torch.allclose(white.mean, torch.zeros(4).double(), atol=1e-4)
    assert torch.allclose(white.covariance, torch.eye(4).double(), atol=1e-4)
    assert [vae.config[name] for name in config] == [1, None, None, None]
    assert torch.allclose(after.sample(), after.mean, atol=1e-5)


@torch.no_grad()
def test_a_direction_without_variance_is_whitened_too():
    vae, pixels = tiny_autoencoder(), frames_of_unseen_scenes()
    vae.quant_conv.weight[1], vae.quant_conv.bias[1] = vae.quant_conv.weight[0], vae.quant_conv.bias[0]
    before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    runpy.run_path(str(SCRIPT))["whiten_latents"](vae, latent_statistics(vae.encode(pixels).latent_dist.parameters, 4))
    assert torch.allclose(vae.decode(vae.encode(pixels).latent_dist.mean).sample, before, atol=1e-4)


def make_objective(vae, **weights):
    objective = runpy.run_path(str(SCRIPT))["ReconstructionObjective"]
    return objective(
        vae, 4.0, 1e-6, **{"foreground_weight": 10.0, "latent_noise": 0.0, "correlation_weight": 0.0} | weights
    )


@torch.no_grad()
def test_objective_without_noise_is_that_of_a_plain_autoencoder():
    vae, pixels = tiny_autoencoder(), frames_of_unseen_scenes()[:4]
    vae.quant_conv.bias[4:] = -40  # a posterior without noise
    loss, l1, mse, kl, penalty, _ = make_objective(vae)(pixels)
    error = vae.decode(vae.encode(pixels).latent_dist.mean).sample - pixels
    unlike = (pixels - pixels.flatten(2).median(dim=-1).values[..., None, None]).abs().mean(dim=1)
    near = torch.empty_like(unlike)  # the most that a pixel or one of the eight beside it is unlike the background
    for y, x in np.ndindex(16, 16):
        near[:, y, x] = unlike[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].amax(dim=(1, 2))
    weight = 1 + 10 * near[:, None]
    weight = weight / weight.mean()
    assert l1.item() == pytest.approx((weight * error.abs()).mean().item(), rel=1e-5)
    assert mse.item() == pytest.approx((weight * error.square()).mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx((l1 + 4 * mse + 1e-6 * kl).item(), rel=1e-5)
    penalised = make_objective(vae, correlation_weight=0.5)(pixels)
    assert penalised[0].item() == pytest.approx((loss + 0.5 * penalty).item(), rel=1e-5) and penalty > 0


@torch.no_grad()
def test_three_channels_are_taught_the_mean_colours():
    vae, pixels = tiny_autoencoder(), frames_of_unseen_scenes()[:4]
    vae.quant_conv.bias[4:] = -40
    colours = colour_units(pixels, 2)
    plain, *_, none = make_objective(vae)(pixels)
    loss, *_, error = make_objective(vae, colour_weight=0.5, colours=colours)(pixels)
    told, patches = vae.encode(pixels).latent_dist.mean[:, :3], pixels.unflatten(-1, (8, 2)).unflatten(-3, (8, 2))
    means = patches.mean(dim=(-3, -1)) - colours.mean[:, None, None]
    expected = (told - torch.einsum("ij,njhw->nihw", colours.whitener, means)).square().mean()
    assert none == 0 and error.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.item() == pytest.approx((plain + 0.5 * error).item(), rel=1e-5)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(30):
        with torch.enable_grad():
            *_, learnt = make_objective(vae, colour_weight=1.0, colours=colours)(pixels)
            learnt.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert learnt < 0.5 * error


@torch.no_grad()
def test_noise_on_the_latents_is_no_less_for_larger_ones():
    """An autoencoder with latents a hundred times as large, which its decoder undoes, has the same loss."""
    vae, pixels, losses = tiny_autoencoder(), frames_of_unseen_scenes()[:4], []
    vae.quant_conv.bias[4:] = -40
    vae.quant_conv.weight[4:] = 0
    for scale in (1, 100):
        vae.quant_conv.weight[:4] *= scale
        vae.quant_conv.bias[:4] *= scale
        vae.post_quant_conv.weight /= scale
        torch.manual_seed(1)
        losses.append(make_objective(vae, latent_noise=0.6)(pixels)[2].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(make_objective(vae)(pixels)[2].item(), rel=1e-3)  # the noise is there


def test_loss_goes_down_and_is_logged(trained):
    with (trained[0] / "train_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 20]
    assert float(rows[1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert float(rows[1]["colour"]) > 0


def test_resuming_ends_where_an_unbroken_run_ends(trained, tmp_path):
    output_dir, _ = trained
    (tmp_path / "checkpoint-10").symlink_to(output_dir / "checkpoint-10")
    (tmp_path / "train_log.csv").write_text((output_dir / "train_log.csv").read_text())
    done = train(tmp_path, "--resume_from_checkpoint", "latest", max_train_steps=20, checkpointing_steps=100)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    unbroken = AutoencoderKL.from_pretrained(output_dir).state_dict()
    resumed = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert (tmp_path / "train_log.csv").read_text() == (output_dir / "train_log.csv").read_text()


def test_trains_on_a_folder_of_videos(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8)
    for name in ("a", "b"):
        write_video(tmp_path / "videos" / f"{name}.mp4", frames, fps=8)
    output_dir = tmp_path / "vae"
    done = train(output_dir, instance_data_root=tmp_path / "videos", num_eval_videos=1, max_train_steps=2)
    assert done.returncode == 0, done.stderr
    assert "1 unseen videos" in done.stdout and "objects kept at" not in done.stdout
    assert json.loads((output_dir / "latents.json").read_text())["objects_kept"] is None
    assert AutoencoderKL.from_pretrained(output_dir).config.sample_size == 16


def test_resuming_minds_options_and_videos(tmp_path, run_here, refusal_of):
    frames = np.random.default_rng(0).integers(0, 255, (3, 6, 16, 16, 3), dtype=np.uint8)
    videos, elsewhere, out = (tmp_path / name for name in ("videos", "elsewhere", "vae"))
    for name, content in zip("abc", frames, strict=True):
        write_video(videos / f"{name}.gif", content, fps=8)
    sizes = {"num_eval_videos": 1, "checkpointing_steps": 1, "max_train_steps": 1}
    run_here(SCRIPT.name, "--output_dir", out, *arguments(instance_data_root=videos, **sizes))

    def resumed(**options):
        given = sizes | {"max_train_steps": 2, "instance_data_root": videos} | options
        given = {name: value for name, value in given.items() if value is not None}
        return ["--output_dir", out, "--resume_from_checkpoint", "latest", *arguments(**given)]

    said = refusal_of(SCRIPT.name, *resumed(mse_weight=2.0, seed=1, latent_channels=6, train_batch_size=4))
    for change in (
        "mse_weight: 4.0 there, 2.0 now",
        "seed: 0 there, 1 now",
        "autoencoder.latent_channels: 4 there, 6 now",
        "global_batch_size: 2 there, 4 now",
    ):
        assert change in said
    said = refusal_of(SCRIPT.name, *resumed(instance_data_root=None))
    assert f"videos: {videos} there, simulated physics now" in said
    shutil.copytree(videos, elsewhere)  # the same videos by another path
    (videos / "b.gif").write_bytes((videos / "c.gif").read_bytes())
    said = refusal_of(SCRIPT.name, *resumed())
    assert "content.videos: " in said and "; videos: " not in said and "mse_weight" not in said
    assert len((out / "train_log.csv").read_text().splitlines()) == 2 and not (out / "checkpoint-2").exists()
    run_here(SCRIPT.name, *resumed(instance_data_root=elsewhere, lr_scheduler="constant"))
    assert (out / "checkpoint-2" / "run.json").is_file()


def test_resuming_minds_the_weights_that_training_began_with(trained, tmp_path, run_here, refusal_of):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(trained[0], base, ignore=shutil.ignore_patterns("checkpoint-*"))
    sizes = {"pretrained_model_name_or_path": base, "checkpointing_steps": 1}
    run_here(SCRIPT.name, "--output_dir", out, *arguments(max_train_steps=1, **sizes))
    vae = AutoencoderKL.from_pretrained(base)
    vae.decoder.conv_in.bias.data.add_(1)
    vae.save_pretrained(base)
    resumed = ["--output_dir", out, "--resume_from_checkpoint", "latest", *arguments(max_train_steps=2, **sizes)]
    assert "content.base: " in refusal_of(SCRIPT.name, *resumed)


def test_a_checkpoint_from_before_is_gone_on_from(trained, tmp_path, run_here, capsys):
    shutil.copytree(trained[0] / "checkpoint-10", tmp_path / "checkpoint-10")
    shutil.copyfile(trained[0] / "train_log.csv", tmp_path / "train_log.csv")
    (tmp_path / "checkpoint-10" / "run.json").unlink()
    run_here(
        SCRIPT.name, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest", *arguments(max_train_steps=11)
    )
    assert "does not tell of what run it is" in capsys.readouterr().out


def test_workers_without_shared_memory_are_told_at_the_start(tmp_path, monkeypatch, refusal_of):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(4096, 0, 4096))
    given = ["--output_dir", tmp_path / "out", *arguments(max_train_steps=1, dataloader_num_workers=2)]
    assert "2 loader workers" in refusal_of(SCRIPT.name, *given)
    assert not (tmp_path / "out").exists()


def test_goes_on_from_an_autoencoder_with_more_latent_channels(trained, tmp_path):
    done = train(
        tmp_path, pretrained_model_name_or_path=trained[0], latent_channels=6, max_train_steps=1, learning_rate=0.0
    )
    assert done.returncode == 0, done.stderr
    vae, given = AutoencoderKL.from_pretrained(tmp_path), AutoencoderKL.from_pretrained(trained[0]).state_dict()
    assert vae.config.latent_channels == 6
    changed = {name.rpartition(".")[0] for name, w in vae.state_dict().items() if not torch.equal(w, given[name])}
    assert changed == {"encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in"}


def test_a_decoder_alone_leaves_the_latents_as_they_are(trained, tmp_path):
    done = train(tmp_path, "--decoder_only", pretrained_model_name_or_path=trained[0], max_train_steps=2)
    assert done.returncode == 0, done.stderr
    assert "whitened" in trained[1] and "whitened" not in done.stdout
    given = AutoencoderKL.from_pretrained(trained[0]).state_dict()
    same = {
        name: torch.equal(w, given[name]) for name, w in AutoencoderKL.from_pretrained(tmp_path).state_dict().items()
    }
    assert all(same[name] == name.startswith(("encoder.", "quant_conv.")) for name in same), same


def test_too_few_channels_for_the_colours_are_refused(tmp_path, refusal_of):
    given = ["--output_dir", tmp_path, *arguments(max_train_steps=1, latent_channels=3)]
    assert "--colour_weight takes three latent channels, of which there are 3" in refusal_of(SCRIPT.name, *given)


def test_a_decoder_alone_learns_no_colours(trained, tmp_path, refusal_of):
    given = ["--output_dir", tmp_path, "--pretrained_model_name_or_path", trained[0], "--decoder_only"]
    assert "--colour_weight has no effect with --decoder_only" in refusal_of(SCRIPT.name, *given, "--colour_weight", 1)


def test_an_autoencoder_without_quant_conv_is_refused(tmp_path, refusal_of):
    tiny_autoencoder(use_quant_conv=False).save_pretrained(tmp_path / "vae")
    options = arguments(pretrained_model_name_or_path=tmp_path / "vae")
    assert "has no quant_conv" in refusal_of(SCRIPT.name, "--output_dir", tmp_path / "out", *options)


def test_too_few_videos_and_odd_sizes_are_errors(tmp_path, refusal_of):
    for args, message in (
        (arguments(instance_data_root=tmp_path), "holds 0 videos"),
        (arguments(resolution=17), "--resolution 17 must be divisible by 2"),
        ([*arguments(), "--resume_from_checkpoint", "latest"], "no complete checkpoint-N folder"),
        ([*arguments(), "--ema_decay", "1"], "give less than 1"),
        (
            [*arguments(), "--decoder_only"],
            "--decoder_only keeps the latents of --pretrained_model_name_or_path: give it",
        ),
    ):
        given = ["--output_dir", tmp_path, *args]
        assert message in refusal_of(SCRIPT.name, *given)


def test_what_is_there_is_not_replaced(trained, refusal_of):
    output_dir, _ = trained
    weights = (output_dir / "diffusion_pytorch_model.safetensors").read_bytes()
    said = refusal_of(SCRIPT.name, "--output_dir", output_dir, *arguments(max_train_steps=1))
    assert "already holds checkpoint-10, checkpoint-20, config.json" in said
    assert (output_dir / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_a_folder_in_use_is_left_alone(tmp_path, refusal_of):
    with FileLock(tmp_path / ".lock"):
        said = refusal_of(SCRIPT.name, "--output_dir", tmp_path, *arguments(max_train_steps=1))
    assert "is in use by another run" in said and [path.name for path in tmp_path.iterdir()] in ([".lock"], [])


def test_the_latest_checkpoint_is_whole(tmp_path):
    for name in ("checkpoint-8", "checkpoint-10", "checkpoint-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ema.pt").touch()
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / "ema.pt.partial").touch()
    find_checkpoint = runpy.run_path(str(SCRIPT))["find_checkpoint"]
    args = argparse.Namespace(output_dir=tmp_path, resume_from_checkpoint="latest")
    assert find_checkpoint(args) == tmp_path / "checkpoint-10"
