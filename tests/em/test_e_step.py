"""The E-step as a plain function: a posterior, measurements, a store and a state; no Trainer."""

from pathlib import Path

import torch
from azula.linalg.covariance import DPLRCovariance

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data.measurements import MeasurementSet, simulate_measurements
from diffem.em import EMState, e_step
from diffem.posterior.gaussian import GaussianPosterior, UninformedGaussian
from diffem.runtime.rng import generator
from diffem.storage.reconstructions import ReconstructionStore

N, DIM, STD = 4000, 4, 0.5
CHANNEL = make_channel(Mask((1, 2, 2), rho=0.5), GaussianNoise(STD))


def problem(path: Path) -> tuple[GaussianPosterior, MeasurementSet, ReconstructionStore]:
    x = torch.randn(N, 1, 2, 2, generator=generator(0))
    measurements = simulate_measurements(x, CHANNEL, seed=0, split="train")
    ones = torch.ones(DIM, dtype=torch.float64)
    posterior = GaussianPosterior(
        0 * ones, DPLRCovariance(ones, torch.zeros(DIM, 1).double()), CHANNEL
    )
    store = ReconstructionStore(path, size=N, chunk_size=700)
    return posterior, measurements, store


def test_an_e_step_commits_a_round_of_exact_posterior_samples(tmp_path: Path) -> None:
    """x ~ N(0, I), y = m (x + σ ε): mean m y / (1 + σ²), variance 1 - m / (1 + σ²)."""
    posterior, measurements, store = problem(tmp_path)
    state = EMState()
    store.begin(0, "init")
    e_step(posterior, measurements, store, state, seed=0)
    assert (state.round, state.e_step_pending) == (0, False) and store.committed(0)
    x = store.open(0).__getitems__(range(N)).x.flatten(1)
    y, mask, _ = (field.flatten(1) for field in measurements.select(slice(None)))
    z = (x - mask * y / (1 + STD**2)) / (1 - mask / (1 + STD**2)).sqrt()
    # Monte Carlo: 4.5 standard errors of means and covariances of N normal vectors.
    assert z.mean(dim=0).abs().max() < 4.5 / N**0.5
    assert (torch.cov(z.mT) - torch.eye(DIM)).abs().max() < 4.5 * (2 / N) ** 0.5


def test_an_e_step_depends_on_seed_and_round_alone(tmp_path: Path) -> None:
    digests = []
    for name, seed, chunks in (("a", 0, ()), ("b", 0, (1, 3)), ("c", 1, ())):
        posterior, measurements, store = problem(tmp_path / name)
        store.begin(0, "init")
        first = ReconstructionStore(tmp_path / "a", size=N, chunk_size=700)
        for chunk in chunks:  # as an E-step that was killed leaves them
            rows = range(N)[store.rows(chunk)]
            store.write(0, chunk, first.open(0).__getitems__(rows).x)
        e_step(posterior, measurements, store, EMState(), seed=seed)
        digests.append(store.digest(0))
    assert digests[0] == digests[1] != digests[2]


def test_the_state_moves_through_a_round() -> None:
    state = EMState()
    state.end_e_step()
    assert state.end_round(2.0)["loss"] is None and state.seconds == 2.0
    state.end_epoch(3.0, [1.0, 2.0])
    state.end_epoch(4.0, [6.0])
    assert (state.round, state.epoch, state.m_step_seconds) == (0, 2, 7.0)
    state.spend(5)
    state.end_m_step()
    assert (state.epoch, state.e_step_pending) == (0, True)
    state.end_e_step()
    costs = state.end_round(1.0)
    assert costs["e_step_seconds"] == 1.0 and costs["m_step_seconds"] == 7.0
    assert costs["loss"] == 3.0 and costs["nfe"] == 5 and costs["optimizer_steps"] == 3
    assert (state.round, state.seconds, state.m_step_seconds, state.steps) == (1, 10.0, 0.0, 0)


def test_round_0_of_a_channel_that_is_not_linear_is_the_start_of_em(tmp_path: Path) -> None:
    _, measurements, store = problem(tmp_path)
    store.begin(0, "init")
    e_step(UninformedGaussian((1, 2, 2), 0.25), measurements, store, EMState(), seed=0)
    x = store.open(0).__getitems__(range(N)).x
    assert abs(float(x.std()) - 0.5) < 4.5 * 0.5 / (2 * N * DIM) ** 0.5
