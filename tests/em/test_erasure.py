"""Erasing: the multiplier in closed form; a loss is raised to the target and no further."""

from functools import partial

import pytest
import torch
from azula.noise import VESchedule
from torch import Tensor, nn

from diffem.corruption import Denoising, GaussianNoise, make_channel
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import BetaMixture, Denoiser
from diffem.em import Cosine, MStep, Unconditional
from diffem.em.erase import Erasing, Rows, multiplier
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

SHAPE = (16,)
CHANNEL = make_channel(Denoising(SHAPE), GaussianNoise(0.5))


def test_the_multiplier_lets_the_constraint_fall_at_its_rate() -> None:
    """⟨∇g, ∇f + λ ∇g⟩ >= η ‖∇g‖², with equality where λ > 0."""
    gen, eta = generator(0), 0.3
    for _ in range(20):
        f, g = ([torch.randn(5, generator=gen), torch.randn(3, generator=gen)] for _ in range(2))
        f = [
            a + shift * b
            for shift in [float(torch.randn((), generator=gen))]
            for a, b in zip(f, g, strict=True)
        ]
        lam = multiplier(f, g, eta)
        square = sum(float(b.square().sum()) for b in g)
        inner = sum(float((b * (a + lam * b)).sum()) for a, b in zip(f, g, strict=True))
        assert inner >= eta * square - 1e-5
        assert lam == 0 or inner == pytest.approx(eta * square, rel=1e-4)
    zeros = [torch.zeros(5)]
    assert multiplier(zeros, zeros, eta) == 0


class Net(nn.Module):
    """A small perceptron that can learn rows by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(17, 128), nn.SiLU(), nn.Linear(128, 16))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x, c.expand(len(x))[:, None]], dim=1))


def rows(name: str, n: int) -> Rows:
    """Returns white rows and their measurements."""
    x = torch.randn(n, *SHAPE, generator=generator(name))
    return Rows(x, MeasurementSet(CHANNEL.draw(x, generator(name, "y")), CHANNEL))


M_STEP = MStep(
    times=BetaMixture([(3, 2)]),
    optimizer=partial(torch.optim.Adam, lr=1e-3),
    schedule=Cosine(warmup=0.0, final=1.0),
    ema_decay=0.9,
)


def erasing(**settings: object) -> Erasing:
    given = {"steps": 300, "eta": 0.5, "lr": 1e-3, **settings}
    return Erasing(Unconditional(), M_STEP, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def learnt() -> Denoiser:
    """A denoiser that knows 32 rows by heart, of which 8 are to be erased."""
    with seeded("learn"):
        denoiser = Denoiser(Net(), VESchedule(0.02, 20.0))
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
        x = torch.cat([rows("kept", 24).x, rows("erased", 8).x])
        for _ in range(1500):
            optimizer.zero_grad()
            denoiser.loss(x, M_STEP.times.sample(len(x))).backward()
            optimizer.step()
    return denoiser.requires_grad_(False)


def losses(denoiser: Denoiser) -> dict[str, float]:
    sets = {"kept": rows("kept", 24), "erased": rows("erased", 8), "audit": rows("audit", 64)}
    return {n: float(erasing().row_losses(denoiser, r, seed=0).mean()) for n, r in sets.items()}


def erased(
    learnt: Denoiser, *, noise: bool = False, **settings: object
) -> tuple[Denoiser, list[float]]:
    """Returns the denoiser after erasing, and λ of each step."""
    denoiser = Denoiser(Net(), learnt.schedule)
    denoiser.load_state_dict(learnt.state_dict())
    path = erasing(**settings).run(
        denoiser,
        rows("kept", 24),
        lambda _: rows("erased", 8),
        None if noise else rows("target", 64),
        batch_size=24,
        seed=0,
    )
    return denoiser, path


def test_a_loss_is_raised_to_that_of_unseen_rows_and_no_further(learnt: Denoiser) -> None:
    denoiser, path = erased(learnt)
    before, after = losses(learnt), losses(denoiser)
    gap = before["audit"] - before["erased"]
    assert gap > 0.5  # there is something to erase
    assert abs(after["audit"] - after["erased"]) < 0.1  # 0.7 before: as if never seen
    # The smoothed loss of 8 rows is behind the true one: it stops a little late.
    assert 0 < after["erased"] - before["audit"] < 0.3 * gap
    assert after["kept"] < before["kept"] + 0.05  # those that stay are still known
    assert path[0] > 0 and path.count(0.0) > 100  # it was reached, and nothing was done then


def test_the_noise_that_is_found_in_erased_rows_comes_nearer_to_uniform_noise(
    learnt: Denoiser,
) -> None:
    """Without regard to what unseen rows have; the constraint acts at every step."""
    own = erasing()
    batch = rows("erased", 8).batch(8, torch.device("cpu"))
    found = []
    for steps in (1, 300):
        denoiser, path = erased(learnt, noise=True, steps=steps)
        with torch.no_grad():
            found.append(float(own._noise_loss(denoiser, batch, rows("erased", 8), (0, "x"))))
    assert found[1] < 0.9 * found[0] and 0.0 not in path


def test_numbers_out_of_their_range_are_refused() -> None:
    for name, value in (("steps", 0), ("eta", 0.0), ("lr", -1.0)):
        with pytest.raises(UserError, match=f"--{name} must be"):
            erasing(**{name: value})
