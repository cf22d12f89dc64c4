"""E-steps that draw from the last reconstructions (`em.warm_start`)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from azula.sample import DDPMSampler
from small_run import CHUNK, ROUNDS, SIZE, SmallRun
from test_resume import Killed, dying

from diffem.denoiser import Conditioning
from diffem.em import EMState, e_step
from diffem.posterior import Conditional, Start, reconstruct
from diffem.posterior.gaussian import UninformedGaussian

STEPS, T = 8, 0.6  # an E-step takes ⌊0.6 · 8⌋ = 4 of the sampler's steps


def warm(path: Path, t: float | None = T) -> SmallRun:
    run = SmallRun(path)
    sampler = partial(DDPMSampler, steps=STEPS)
    run.posterior = partial(Conditional, sampler=sampler, condition=Conditioning())
    run.settings = replace(run.settings, warm_start=t)
    return run


def test_round_0_is_the_init_s_and_the_next_ones_are_cheaper(tmp_path: Path) -> None:
    run, cold = warm(tmp_path / "a").fit(), warm(tmp_path / "b", None).fit()
    assert run.store.digest(0) == cold.store.digest(0)
    assert run.store.digest(1) != cold.store.digest(1)
    chunks = -(-SIZE // CHUNK)
    assert cold.nfe(-1) - run.nfe(-1) == ROUNDS * chunks * CHUNK * (STEPS - int(T * STEPS))


def test_law_3_a_chunk_depends_on_its_own_of_the_round_before(tmp_path: Path) -> None:
    run = warm(tmp_path / "a").fit()
    last, k, chunk = run.store.open(ROUNDS - 1), ROUNDS, 2
    rows = run.store.rows(chunk)
    start = Start(last.__getitems__(range(SIZE)[rows]).x, T)
    posterior = run.posterior(run.module.average.eval(), run.measurements.channel)
    with torch.no_grad():
        x = reconstruct(
            posterior, run.measurements.select(rows),
            size=CHUNK, key=(run.module.seed, "e-step", k, chunk), device="cpu", start=start,
        )  # fmt: skip
    assert torch.equal(x, run.store.open(k).__getitems__(range(SIZE)[rows]).x)


@pytest.mark.parametrize("call", [5, 7])  # the first and the third chunk of E-step 1
def test_law_4_a_kill_in_an_e_step_changes_nothing(call: int, tmp_path: Path) -> None:
    whole = warm(tmp_path / "a").fit()
    first = warm(tmp_path / "b")
    with pytest.raises(Killed):
        dying(first, first.store, "write", call).fit()
    resumed = warm(tmp_path / "b").fit()
    assert resumed.module.weights_hash() == whole.module.weights_hash()
    digests = [[r.store.digest(k) for k in range(ROUNDS + 1)] for r in (resumed, whole)]
    assert digests[0] == digests[1]


def test_a_posterior_that_draws_from_noise_alone_says_so(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "r").fit()
    run.store.begin(ROUNDS + 1, "another")
    state = EMState(round=ROUNDS)
    with pytest.raises(NotImplementedError, match="UninformedGaussian draws from noise alone"):
        e_step(
            UninformedGaussian((1, 8, 8), 0.25), run.measurements, run.store, state,
            seed=0, warm_start=T,
        )  # fmt: skip
