"""Balance: groups that are served or weighed, and the minimum of the worst one's loss."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import SIZE, SmallRun
from test_resume import Killed, dying
from torch import Tensor

from diffem.em import Balance, Dual, Oversample
from diffem.em.datamodule import StepSampler
from diffem.em.objective import Unconditional
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded
from diffem.storage.reconstructions import Batch

GROUPS = torch.tensor([7] * 9 + [2])  # nine measurements of one group and one of the other


def alone(values: Tensor) -> Tensor:
    """Returns the sum over one process."""
    return values


def batch(rows: Tensor) -> Batch:
    return Batch(torch.zeros(len(rows), 1), 0, rows)


def test_groups_are_served_equally_often_and_their_rows_too() -> None:
    balance = Oversample()
    balance.divide(torch.tensor([0] * 10 + [1] * 4 + [5] * 3))
    assert balance.order is not None
    size = len(balance.order)
    sampler = StepSampler(size, size, steps=range(1), key=("x",), order=balance.order)
    count = Counter(next(iter(sampler)))
    of_group = [
        sum(count[row] for row in rows) for rows in (range(10), range(10, 14), (14, 15, 16))
    ]
    assert of_group == [10, 10, 10]
    assert {count[row] for row in range(10, 14)} == {2, 3}
    assert {count[row] for row in (14, 15, 16)} == {3, 4}


def test_dual_s_weights_are_those_of_its_lagrangian() -> None:
    """Σ_i w_i ℓ_i / N = Σ_g (π_g + λ_g) L_g / (1 + Σ λ), of losses 2 and 3: known by hand."""
    balance = Dual(rate=0.1)
    balance.divide(GROUPS)
    balance.restore([0.3, 0.2])  # of the groups 2 and 7, in their order
    weighed = balance.weighed(batch(torch.arange(10)))
    assert weighed.weight is not None
    losses = torch.tensor([2.0] * 9 + [3.0])
    expected = ((0.1 + 0.3) * 3 + (0.9 + 0.2) * 2) / 1.5
    assert float((weighed.weight * losses).mean().detach()) == pytest.approx(expected)
    assert float(weighed.weight.mean().detach()) == pytest.approx(1)


def test_multipliers_follow_the_losses_of_the_rows() -> None:
    """The rows' losses are found by the gradient: λ ← [λ + η (L_g - mean)]₊, by hand."""
    balance = Dual(rate=0.1)
    balance.divide(GROUPS)
    balance.restore([0.0, 0.01])
    part = balance.weighed(batch(torch.tensor([9, 0, 1, 2])))
    losses = torch.tensor([3.0, 1.0, 2.0, 3.0])  # group 2: 3, group 7: 2, the mean of both 2.5
    assert part.weight is not None
    balance.learn((part.weight * losses).mean(), part, alone)
    assert balance.state() == pytest.approx([0.05, 0.0])  # 0.01 - 0.05 is cut at 0
    part = balance.weighed(batch(torch.tensor([0, 1])))  # the other group is not there
    assert part.weight is not None
    balance.learn((part.weight * losses[:2]).mean(), part, alone)
    assert balance.state() == pytest.approx([0.05, 0.0])


def test_the_rows_losses_are_those_of_the_objective(tmp_path: Path) -> None:
    """∂loss/∂w_i = ℓ_i / B, against the loss with all weights but one at 0."""
    run = SmallRun(tmp_path / "r", objective=Unconditional())
    x, t = run.measurements.known_truth("a test")[:4], torch.linspace(0.3, 0.6, 4)

    def loss(weight: Tensor) -> Tensor:
        part = Batch(x, 0, torch.arange(4), weight=weight)
        with seeded("loss"):
            return run.module.objective.loss(
                run.module.denoiser, part, t, measurements=run.measurements, key=(0,)
            )

    weight = torch.ones(4, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(weight), weight)
    single = torch.stack([loss(row) for row in torch.eye(4)])
    torch.testing.assert_close(slope, single.detach())


def test_all_processes_have_the_same_multipliers() -> None:
    """Two of them with a half of the batch each: the sums over both are those of the whole."""
    rows, losses = torch.tensor([9, 0, 1, 2]), torch.tensor([3.0, 1.0, 2.0, 4.0])
    sums: list[Tensor] = []
    states = []
    for turn in range(2):  # first each one's own sums are taken, then both get the total
        for half in (slice(0, 2), slice(2, 4)):
            balance = Dual(rate=0.1)
            balance.divide(GROUPS)
            part = balance.weighed(batch(rows[half]))
            assert part.weight is not None

            def total(own: Tensor, turn: int = turn) -> Tensor:
                sums.append(own)
                return own if turn == 0 else sums[0] + sums[1]

            balance.learn((part.weight * losses[half]).mean(), part, total)
            states.append(balance.state())
    whole = Dual(rate=0.1)
    whole.divide(GROUPS)
    part = whole.weighed(batch(rows))
    assert part.weight is not None
    whole.learn((part.weight * losses).mean(), part, alone)
    assert states[2] == states[3] == pytest.approx(whole.state())


def test_dual_finds_the_minimum_of_the_largest_loss() -> None:
    """L = (θ - 1)² for nine of ten, (θ + 1)² for one: pooled 0.8, minimax 0, known."""
    found = {}
    for balance in (Balance(), Dual(rate=0.01)):
        balance.divide(GROUPS)
        theta = torch.zeros(1, requires_grad=True)
        for _ in range(4000):
            part = balance.weighed(batch(torch.arange(10)))
            each = (theta - torch.tensor([1.0] * 9 + [-1.0])).square()
            loss = (part.factor() * each[:, None]).mean()
            balance.learn(loss, part, alone)
            (slope,) = torch.autograd.grad(loss, theta)
            with torch.no_grad():
                theta -= 0.05 * slope
        found[type(balance)] = float(theta.detach())
    assert found[Balance] == pytest.approx(0.8, abs=1e-3)
    assert found[Dual] == pytest.approx(0.0, abs=1e-2)


class Balanced(SmallRun):
    """A run of two groups, of which one has a tenth of the measurements."""

    def __init__(self, path: Path, balance: Balance) -> None:
        super().__init__(path)
        groups = (torch.arange(SIZE) % 10 == 0).long()
        self.measurements = replace(self.measurements, groups=groups)
        balance.divide(groups)
        self.module.m_step = replace(self.module.m_step, balance=balance)


@pytest.mark.parametrize("make", [Oversample, lambda: Dual(rate=1.0)], ids=["oversample", "dual"])
def test_law_4_a_killed_run_balances_as_an_uninterrupted_one(
    make: type[Oversample], tmp_path: Path
) -> None:
    whole = Balanced(tmp_path / "whole", make()).fit()
    plain = SmallRun(tmp_path / "plain").fit()
    assert whole.module.weights_hash() != plain.module.weights_hash()
    for owner, method, call in (("module", "training_step", 6), ("store", "write", 10)):
        path = tmp_path / f"{method}_{call}"
        first = Balanced(path, make())
        with pytest.raises(Killed):
            dying(first, getattr(first, owner), method, call).fit()
        resumed = Balanced(path, make()).fit()
        assert resumed.module.weights_hash() == whole.module.weights_hash()
        states = [run.module.m_step.balance.state() for run in (resumed, whole)]
        assert states[0] == states[1]


def test_without_saved_multipliers_they_are_zero() -> None:
    """As in a run from which a group was erased: those of its groups do not fit."""
    balance = Dual(rate=0.1)
    balance.divide(GROUPS)
    balance.restore([])
    assert balance.state() == [0.0, 0.0]


def test_what_has_no_two_groups_is_refused() -> None:
    for balance in (Oversample(), Dual(rate=0.1)):
        with pytest.raises(UserError, match=r"needs groups of measurements: give dataset\.groups"):
            balance.divide(None)
        with pytest.raises(UserError, match="needs at least two groups"):
            balance.divide(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"balance\.rate must be"):
        Dual(rate=0.0)
    Balance().divide(None)
