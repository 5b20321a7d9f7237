"""The optimizers and the steps of the training loop, against a loop written out."""

import csv
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from diffusers_videogpt.training.feed import MicroBatch
from diffusers_videogpt.training.loop import TrainingLoop, check_heads, make_accelerator, make_optimizers
from diffusers_videogpt.training.settings import BatchSettings, LoopSettings, OptimizerSettings


def test_what_decays_and_what_muon_takes(tiny_transformer):
    tiny_transformer.norm.weight.requires_grad_(False)
    names = {id(p): name for name, p in tiny_transformer.named_parameters()}
    trained = set(names.values()) - {"norm.weight"}
    numbers = {"learning_rate": 0.3, "adam_beta1": 0.7, "adam_beta2": 0.8, "adam_epsilon": 0.01}
    numbers |= {"adam_weight_decay": 0.2}
    (adamw,) = make_optimizers(tiny_transformer, OptimizerSettings(**numbers))
    decayed, others = (group["params"] for group in adamw.param_groups)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.2, 0.0]
    assert min(p.ndim for p in decayed) == 2 and {p.ndim for p in others} == {1}
    assert {names[id(p)] for p in (*decayed, *others)} == trained
    for group in adamw.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.7, 0.8), 0.01)

    muon, adamw = make_optimizers(tiny_transformer, OptimizerSettings(optimizer="muon", **numbers))
    (group,) = muon.param_groups
    assert (group["lr"], group["weight_decay"], group["adjust_lr_fn"]) == (0.3, 0.2, "match_rms_adamw")
    matrices = {names[id(p)] for p in group["params"]}
    assert matrices == {name for name in trained if name.startswith("transformer_blocks.") and "norm" not in name}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert rest == trained - matrices


class KnownFeed:
    """Micro-batch `number` is latents of that number."""

    def micro_batches(self, start_step, end_step):
        for number in range(2 * start_step, 2 * end_step):
            yield MicroBatch(torch.full((1, 4, 1, 4, 4), float(number)), [], [[1]], [str(number)])


def loss_of(model, batch):
    return (1 + batch.latents.mean()) * sum(p.square().sum() for p in model.proj_out.parameters())


@pytest.mark.parametrize("max_grad_norm", [0.01, 1e9])
def test_steps_are_those_of_a_loop_written_out(make_tiny_transformer, tmp_path, max_grad_norm):
    """Accumulation, clipping, warm-up and averaged weights; each validation sees these and leaves no trace."""
    optimizer_settings = OptimizerSettings(
        max_grad_norm=max_grad_norm,
        lr_scheduler="linear",
        lr_warmup_steps=2,
        learning_rate=0.1,
        adam_epsilon=0.1,
        ema_decay=0.15,
    )
    settings = LoopSettings(output_dir=tmp_path, max_train_steps=5, validation_steps=2, logging_steps=3)

    rates = [0.0, 0.05, 0.1, 0.1 * 2 / 3, 0.1 / 3, 0.0]
    model = make_tiny_transformer().train()
    optimizer = torch.optim.AdamW(
        [{"params": [model.proj_out.weight]}, {"params": [model.proj_out.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        weight_decay=0.1,
        eps=0.1,
    )
    average, losses, averages = model.proj_out.weight.detach().clone(), [], {}
    for step in range(5):
        both = [loss_of(model, batch) for batch in KnownFeed().micro_batches(step, step + 1)]
        loss = sum(both) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.15, (1 + step) / (10 + step)) if step else 0.0  # diffusers lets it rise
        average.lerp_(model.proj_out.weight.detach(), 1 - decay)
        losses.append(loss.item())
        averages[step + 1] = average.clone()

    seen = {}

    def validate(loop, step):
        assert not loop.model.training and not torch.is_grad_enabled()
        seen[step] = loop.model.proj_out.weight.clone()
        return {"loss": float(step)}

    trained, accelerator = make_tiny_transformer(), Accelerator(cpu=True, gradient_accumulation_steps=2)
    TrainingLoop(
        accelerator,
        trained,
        feed=KnownFeed(),
        loss=loss_of,
        settings=settings,
        optimizer=optimizer_settings,
        run={},
        validate=validate,
        batches=BatchSettings(gradient_accumulation_steps=2),
    ).run()
    torch.testing.assert_close(trained.proj_out.state_dict(), model.proj_out.state_dict())
    torch.testing.assert_close(seen, {step: averages[step] for step in (2, 4, 5)})
    assert trained.training
    with (tmp_path / "train_log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["validation_loss"]) for row in rows] == [
        ("2", "2.0"),
        ("3", ""),
        ("4", "4.0"),
        ("5", "5.0"),
    ]
    means = [sum(losses[:2]) / 2, losses[2], losses[3], losses[4]]
    assert [float(row["loss"]) for row in rows] == pytest.approx(means, rel=1e-4)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([rates[step] for step in (2, 3, 4, 5)])


LOSSES = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.0, 5: 1.0, 6: 9.0, 7: 9.0, 8: 9.0}


def loop_with_patience(model, folder, *, patience, resume=None, ema_decay=0.5):
    """One that validates at every step, with the losses above."""
    feed = KnownFeed()
    feed.source = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    return TrainingLoop(
        Accelerator(cpu=True, gradient_accumulation_steps=2),
        model,
        feed=feed,
        loss=loss_of,
        settings=LoopSettings(
            output_dir=folder,
            max_train_steps=8,
            validation_steps=1,
            checkpointing_steps=3,
            checkpoints_total_limit=1,
            resume_from_checkpoint=resume,
        ),
        optimizer=OptimizerSettings(learning_rate=0.1, lr_warmup_steps=1, ema_decay=ema_decay),
        run={},
        validate=lambda loop, step: (
            loop.seen.update({step: loop.model.proj_out.weight.clone()}) or {"loss": LOSSES[step]}
        ),
        batches=BatchSettings(gradient_accumulation_steps=2),
        patience=patience,
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
@pytest.mark.parametrize("patience, last, best", [(1, 3, 2), (2, 4, 2), (3, 8, 5), (0, 8, None)])
def test_patience_ends_a_run_and_keeps_the_best(make_tiny_transformer, tmp_path, patience, last, best, ema_decay):
    loop = loop_with_patience(make_tiny_transformer(), tmp_path, patience=patience, ema_decay=ema_decay)
    loop.seen = {}
    loop.run()
    assert loop.step == last == max(loop.seen)
    assert loop.best == (None if best is None else {"step": best, "loss": LOSSES[best]})
    kept = loop.trained_state_dict()["proj_out.weight"]
    torch.testing.assert_close(kept, loop.seen[best or last], atol=0, rtol=0)
    names = {path.name for path in tmp_path.glob("checkpoint-*")}
    if best is not None:  # beside the one that the limit lets stay
        assert f"checkpoint-{best}" in names and len(names) <= 2


def test_a_run_that_goes_on_remembers_its_best(make_tiny_transformer, tmp_path):
    whole = loop_with_patience(make_tiny_transformer(), tmp_path / "whole", patience=3)
    whole.seen = {}
    whole.run()
    first = loop_with_patience(make_tiny_transformer(), tmp_path / "run", patience=3)
    first.seen, first.settings.max_train_steps = {}, 4
    first.run()
    # It went back to step 2 when it ended; its last checkpoint is of step 3.
    second = loop_with_patience(make_tiny_transformer(), tmp_path / "run", patience=3, resume="latest")
    second.seen = {}
    second.run()
    assert second.first_step == 3 and second.best == whole.best and second.step == 8
    expected = whole.trained_state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in second.trained_state_dict().items())

    third = loop_with_patience(make_tiny_transformer(), tmp_path / "again", patience=3)
    third.seen, third.settings.max_train_steps = {}, 4
    third.run()
    (tmp_path / "again" / "checkpoint-2").rename(tmp_path / "moved")
    fourth = loop_with_patience(make_tiny_transformer(), tmp_path / "again", patience=3, resume="latest")
    with pytest.raises(
        SystemExit, match="checkpoint-2, which had the lowest loss of held-out videos so far, is not there"
    ):
        fourth.run()


def test_heads_that_processes_can_not_share_are_refused(tiny_transformer):
    check_heads(tiny_transformer, 1)
    check_heads(tiny_transformer, 2)
    with pytest.raises(ValueError, match="`ulysses_degree=3` does not divide the 2 attention heads"):
        check_heads(tiny_transformer, 3)


def test_parallelism_of_accelerate_is_refused(monkeypatch, tmp_path):
    """It would exchange this model's attention for one without its mask."""
    foreign = SimpleNamespace(cp_size=2, sp_size=1, tp_size=1, non_data_parallel_size=2)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.MULTI_CPU, num_processes=2, parallelism_config=foreign
    )
    monkeypatch.setattr("diffusers_videogpt.training.loop.Accelerator", lambda **_: accelerator)
    with pytest.raises(SystemExit, match=r"cp_size 2, sp_size 1, tp_size 1.* give --context_parallel_size N"):
        make_accelerator(LoopSettings(output_dir=tmp_path), batches=BatchSettings(), optimizer=OptimizerSettings())
