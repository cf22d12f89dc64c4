"""Numbers gone bad end a run, or roll it back at half the rate; law 4 holds of both."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from small_run import ROUNDS, STEPS, SmallRun
from test_resume import Killed, dying
from torch import Tensor, nn

from diffem.runtime.errors import UserError
from diffem.storage.checkpoint import load_checkpoint
from diffem.storage.reconstructions import Batch

Poison = Callable[[SmallRun, Tensor], Tensor]


def bad_gradient(run: SmallRun, loss: Tensor) -> Tensor:
    """A loss that is finite, with gradients that are not: d sqrt(p)/dp at 0 is infinite."""
    weight = next(run.module.denoiser.parameters())
    return loss + (weight - weight.detach()).sum().sqrt()


def bad_loss(run: SmallRun, loss: Tensor) -> Tensor:
    """A loss that is not finite, with gradients that are."""
    return loss + torch.tensor(float("inf"))


def poisoned(run: SmallRun, poison: Poison, *steps: int, rate: float = 1.0) -> SmallRun:
    """Makes the loss of some steps bad as long as the learning rate is above half of a rate."""
    original = run.module.objective.loss

    def loss(denoiser: object, batch: Batch, t: Tensor, *, key: tuple, **others: Any) -> Tensor:
        value = original(denoiser, batch, t, key=key, **others)  # type: ignore[arg-type]
        bad = key[2] in steps and 0.5**run.module.rollbacks > rate / 2
        return poison(run, value) if bad else value

    run.module.objective.loss = loss  # type: ignore[method-assign]
    return run


# Steps 0 to 3 are round 1's, in epochs of 3 and 1; 4 to 7 round 2's.
@pytest.mark.parametrize("poison", [bad_loss, bad_gradient])
def test_a_bad_number_ends_the_run(poison: Poison, tmp_path: Path) -> None:
    run = poisoned(SmallRun(tmp_path / "r"), poison, 5)
    checkpoint = tmp_path / "r.checkpoints" / "last.ckpt"
    with pytest.raises(UserError) as told:
        run.fit()
    assert "not finite at optimiser step 5 (round 2)" in str(told.value)
    assert f"the last good checkpoint is {checkpoint}" in str(told.value)
    assert "with m_step.rollbacks=1" in str(told.value)
    assert "trainer.precision" not in str(told.value)  # it is 32-true
    assert load_checkpoint(checkpoint)["global_step"] == 4
    assert all(p.isfinite().all() for p in run.module.parameters())  # the step was not taken
    # What it says to do: the run goes on to where it would have come with roll-backs from the
    # start.
    after = poisoned(SmallRun(tmp_path / "r", rollbacks=1), poison, 5).fit()
    whole = poisoned(SmallRun(tmp_path / "whole", rollbacks=1), poison, 5).fit()
    assert after.module.weights_hash() == whole.module.weights_hash()


@pytest.mark.parametrize("step", [2, 5])
def test_a_roll_back_halves_the_rate_from_the_last_checkpoint_on(
    step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = poisoned(SmallRun(tmp_path / "r", rollbacks=1), bad_gradient, step)
    rates: dict[int, list[float]] = {}
    original = run.module.configure_gradient_clipping

    def record(optimizer: torch.optim.Optimizer, **clipping: Any) -> None:
        original(optimizer, **clipping)
        rates.setdefault(run.module.trainer.global_step, []).append(
            optimizer.param_groups[0]["lr"]
        )

    run.module.configure_gradient_clipping = record  # type: ignore[method-assign]
    run.fit()
    assert "resuming from it at 0.5 of the learning rate" in capsys.readouterr().err
    saved = {2: 0, 5: 4}[step]  # the step of the checkpoint that it goes back to
    schedule = run.module.m_step.schedule
    assert sorted(rates) == list(range(ROUNDS * STEPS))
    for s, seen in rates.items():
        full = 1e-3 * schedule(s % STEPS / STEPS)
        expected = [full] * (s < step) + [full / 2] * (s >= saved)
        assert seen == pytest.approx(expected), s
    assert run.module.rollbacks == 1
    plain = SmallRun(tmp_path / "plain").fit()
    assert run.module.weights_hash() != plain.module.weights_hash()


def test_no_more_roll_backs_than_allowed(tmp_path: Path) -> None:
    run = poisoned(SmallRun(tmp_path / "r", rollbacks=2), bad_loss, 5, rate=0.0)
    with pytest.raises(UserError, match=r"with m_step\.rollbacks=3"):
        run.fit()
    # Two halvings are enough here, and the second is counted from the first.
    run = poisoned(SmallRun(tmp_path / "s", rollbacks=2), bad_loss, 1, 5, rate=0.5).fit()
    assert run.module.rollbacks == 2
    assert [r.number for r in run.rounds] == [0, 1, 2]


POINTS = {"after the first": 7, "after the second": 9, "after a checkpoint": 11}


@pytest.mark.parametrize("point", POINTS)
def test_law_4_a_run_that_was_rolled_back_can_be_killed(point: str, tmp_path: Path) -> None:
    """Step 5 is the sixth; it is tried twice at too high a rate, from the checkpoint of step 4."""

    def small(name: str) -> SmallRun:
        run = SmallRun(tmp_path / name, rollbacks=2)
        run.settings = run.settings.__class__(**{**vars(run.settings), "steps_per_epoch": 2})
        return poisoned(run, bad_gradient, 5, rate=0.5)

    whole, first = small("whole").fit(), small("r")
    with pytest.raises(Killed):
        dying(first, first.module, "training_step", POINTS[point]).fit()
    resumed = small("r").fit()
    assert resumed.module.rollbacks == whole.module.rollbacks == 2
    assert resumed.module.weights_hash() == whole.module.weights_hash()
    assert resumed.store.digest(ROUNDS) == whole.store.digest(ROUNDS)
    assert resumed.nfe(-1) == whole.nfe(-1)


def test_a_checkpoint_of_bad_weights_is_not_saved(tmp_path: Path) -> None:
    """A step may leave weights that are not finite, though its gradients are."""
    run = SmallRun(tmp_path / "r")
    original = run.module.on_train_batch_end

    def overflow(outputs: object, batch: Batch, batch_idx: int) -> None:
        original(outputs, batch, batch_idx)  # type: ignore[arg-type]
        if run.module.trainer.global_step == 3:
            with torch.no_grad():
                next(run.module.denoiser.parameters()).fill_(float("inf"))

    run.module.on_train_batch_end = overflow  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the weights are not finite at optimiser step 3"):
        run.fit()
    assert load_checkpoint(tmp_path / "r.checkpoints" / "last.ckpt")["global_step"] == 0


class HalfPrecision(MixedPrecision):
    """16-mixed, whose loss scale overflows in its first steps, without autocast."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # steps are skipped
def test_a_scaler_s_overflows_are_no_bad_numbers(tmp_path: Path) -> None:
    def small(name: str) -> SmallRun:
        run = SmallRun(tmp_path / name)
        run.plugins = [HalfPrecision(2.0**127)]
        return run

    whole, first = small("whole").fit(), small("r")
    scaler = whole.plugins[0].scaler
    assert scaler is not None and scaler.get_scale() < 2.0**127  # steps were skipped
    with pytest.raises(Killed):
        dying(first, first.module, "training_step", 5).fit()
    assert small("r").fit().module.weights_hash() == whole.module.weights_hash()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_gradients_are_clipped_at_their_own_scale(tmp_path: Path) -> None:
    """Lightning unscales those of an optimiser that is not fused, and not those of a fused one."""
    weights = []
    for name, plugins, fused in (
        ("plain", [], True),
        ("fused", [HalfPrecision(2.0**10)], True),
        ("not fused", [HalfPrecision(2.0**10)], False),
    ):
        run = SmallRun(tmp_path / name)
        # With eps = 1 a step depends on the gradients' scale.
        adam = partial(torch.optim.Adam, lr=1e-1, eps=1.0, fused=fused)
        run.module.m_step = replace(run.module.m_step, optimizer=adam)
        run.plugins, run.clip = plugins, 0.1
        weights.append(torch.cat([p.detach().flatten() for p in run.fit().module.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(weights[2], weights[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [0.5, 1 - 2e-6, 1 - 1e-6, 1 - 5e-7, 1.0, 1.0 + 1e-6, 3.0])
def test_gradients_are_clipped_as_torch_clips_them(norm: float, tmp_path: Path) -> None:
    """Bit for bit: where they are left alone, torch multiplies them by 1."""
    module = SmallRun(tmp_path).module
    module._trainer = SimpleNamespace(precision_plugin=None)  # type: ignore[assignment]
    weights = [nn.Parameter(torch.zeros(n)) for n in (3, 40)]
    drawn = torch.randn(43, generator=torch.Generator().manual_seed(0))
    for weight, part in zip(weights, (norm * drawn / drawn.norm()).split([3, 40]), strict=True):
        weight.grad = part.clone()
    expected = copy.deepcopy(weights)
    for weight, copied in zip(weights, expected, strict=True):
        assert weight.grad is not None
        copied.grad = weight.grad.clone()
    nn.utils.clip_grad_norm_(expected, 1.0)
    module.configure_gradient_clipping(torch.optim.SGD(weights), gradient_clip_val=1.0)
    for weight, copied in zip(weights, expected, strict=True):
        assert weight.grad is not None and copied.grad is not None
        assert torch.equal(weight.grad, copied.grad)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scaler_that_finds_no_scale_tells_of_bad_numbers(tmp_path: Path) -> None:
    run = poisoned(SmallRun(tmp_path / "r"), bad_loss, *range(8))
    run.plugins = [HalfPrecision(2.0)]
    with pytest.raises(UserError, match="not finite at optimiser step 2"):
        run.fit()
