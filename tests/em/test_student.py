"""The student: its gradient, its fixed point, and that a killed fit goes on as if it was not."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from azula.noise import VESchedule
from exact import Zero
from in_process import run_here
from torch import Tensor

import diffem
from diffem.cli import sample
from diffem.corruption import Denoising, GaussianNoise, make_channel
from diffem.corruption.operator import expand
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import BetaMixture, Conditioning, Denoiser
from diffem.em import Cosine, DiffInstruct, MStep, StudentModule
from diffem.em.objective import Recorrupted
from diffem.posterior import DenoiserPosterior
from diffem.result.export import export_run
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

SHAPE, STD = (1, 4, 4), 0.5
CHANNEL = make_channel(Denoising(SHAPE), GaussianNoise(STD))
STUDENT = ("student=diff_instruct", "student.steps=7", "em.steps_per_epoch=3")


def module(**settings: Any) -> StudentModule:
    """Returns a student whose teacher is exact for x ~ N(0, I), each net of one weight."""
    m_step = MStep(
        times=BetaMixture([(2, 2)]),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=Cosine(warmup=0.0, final=1.0),
        ema_decay=0.9,
    )
    objective = Recorrupted(condition=Conditioning(), p_uncond=0.0, fresh=True)
    given = DiffInstruct(**{"steps": 9, "lr": 1e-2, "score_lr": 1e-2, "sigma": 1.0, **settings})
    teacher = Denoiser(Zero(), VESchedule(0.02, 20.0))
    return StudentModule(teacher, objective, m_step, settings=given, seed=0)


def weight(denoiser: Denoiser) -> Tensor:
    """Returns the one weight of a denoiser."""
    (found,) = denoiser.parameters()
    return found


def loss(student: StudentModule, x: Tensor, step: int) -> Tensor:
    """Returns the loss of a batch at a step."""
    measured = MeasurementSet(CHANNEL.draw(x, generator("y")), CHANNEL)
    batch = Batch(x, 0, torch.arange(len(x)))
    with seeded(step):
        t = student.m_step.times.sample(len(x))
        return student.loss(batch, t, measured, (0, "student", step, 0))


def test_the_gradients_are_those_of_the_two_losses() -> None:
    """∂/∂ψ of the follower's denoising loss, E w (d_ψ - d_p) ∂x/∂φ of the student."""
    student = module()
    for net, value in ((student.denoiser, 0.2), (student.follower, -0.1)):
        torch.nn.init.constant_(weight(net), value)
    x = torch.randn(16, *SHAPE, generator=generator("x"))
    loss(student, x, 0).backward()
    with seeded(0), torch.no_grad():  # the same draws
        t = student.m_step.times.sample(len(x))
        condition = Conditioning()(
            CHANNEL, CHANNEL.draw(x, generator(0, "student", 0, 0, "channel"))
        )
        start, noise = student.start, torch.randn_like(x)
        x_T = student.denoiser.fused_start(noise, start, condition)
        made, d = student.denoiser(x_T, start, condition).mean, []
        for shift in (1e-2, -1e-2):  # the net is linear in its weight
            weight(student.denoiser).add_(shift)
            d.append(student.denoiser(x_T, start, condition).mean)
            weight(student.denoiser).sub_(shift)
        sigma_t = expand(student.teacher.schedule(t)[1], x)
        x_t = made + sigma_t * torch.randn_like(x)
        guess, wanted = (
            net(x_t, t, condition).mean for net in (student.follower, student.teacher)
        )
        w = student.teacher.loss_weight(t, condition, x)
        expected = (w * (guess - wanted) * (d[0] - d[1]) / 2e-2).mean()
    torch.testing.assert_close(weight(student.denoiser).grad, expected, rtol=1e-3, atol=0)
    follower = student.follower
    grad, weight(follower).grad = weight(follower).grad, None
    (w * (follower(x_t, t, condition).mean - made).square()).mean().backward()
    torch.testing.assert_close(grad, weight(follower).grad)
    assert weight(student.teacher).grad is None


def test_a_student_of_a_gaussian_learns_its_posterior() -> None:
    """x ~ N(0, I), y = x + 0.5 ε: with σ = 1 the fusion has the posterior's moments itself, so
    that the student must become the identity of z̄, which is the weight √(1/(1 + 1/0.25))."""
    student = module()
    optimizer = torch.optim.Adam(
        [*student.denoiser.parameters(), *student.follower.parameters()],
        lr=1e-2,
        betas=(0.0, 0.999),
    )
    tail = []
    for step in range(600):
        optimizer.zero_grad()
        loss(student, torch.randn(64, *SHAPE, generator=generator("x", step)), step).backward()
        optimizer.step()
        if step >= 400:
            tail.append(float(weight(student.denoiser).detach()))
    # It starts at 0. Adam's steps of 1e-2 of random sign leave a few hundredths.
    assert sum(tail) / len(tail) == pytest.approx(5**-0.5, abs=0.05)


def test_it_counts_every_evaluation() -> None:
    """Student and follower forward and backward, and the teacher forward: 5 an image."""
    student = module()
    loss(student, torch.randn(8, *SHAPE), 0).backward()
    assert student.take_nfe() == 5 * 8


def test_the_teacher_is_without_dropout() -> None:
    """As the posterior samples: its own draws of dropout were learned as if y had said them."""
    student = module()
    student.teacher.backbone = torch.nn.Sequential()  # of no weight
    modes = list[bool]()

    def answer(z: Tensor, level: Tensor, cond: Tensor | None = None) -> Tensor:
        modes.append(student.teacher.backbone.training)
        return torch.zeros_like(z)

    student.teacher.backbone.forward = answer  # type: ignore[method-assign]
    loss(student, torch.randn(8, *SHAPE), 0)
    assert modes == [False] and student.denoiser.training and student.follower.training
    assert student.teacher.training  # Lightning warns of modules that start a fit in eval mode


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(tmp_path_factory.mktemp("student") / "run", *STUDENT)


class Killed(BaseException):
    """Ends a run where a kill would."""


def test_a_killed_fit_is_an_uninterrupted_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, plain = 0, StudentModule.loss

    def dying(self: StudentModule, *arguments: Any) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Killed
        return plain(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StudentModule, "loss", dying)
        run_here(tmp_path / "run", *STUDENT)
    run_here(tmp_path / "run", *STUDENT, "resume=auto")
    files = [folder / "checkpoints" / "student.safetensors" for folder in (run, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    found = [json.loads((f.parents[1] / "summary.json").read_text())["student"] for f in files]
    assert found[0] == found[1]


def test_the_rates_that_are_too_large_are_the_student_s(tmp_path: Path) -> None:
    """The advice was to lower the rate of the M-steps, which it does not have."""
    with pytest.raises(UserError, match=r"a lower student\.lr and student\.score_lr$"):
        run_here(tmp_path / "run", *STUDENT, "student.lr=1000", "student.score_lr=1000")


def test_the_summary_says_what_it_is_worth(run: Path) -> None:
    student = json.loads((run / "summary.json").read_text())["student"]
    assert student["evaluations"] == 1
    assert student["distillation"] == 7 * 8 * 5  # steps, batch, evaluations
    assert student["break_even"] == 280  # of a teacher of two evaluations
    assert {"residual_chi2", "posterior_std", "measurement_energy_distance"} <= student.keys()


def test_it_is_loaded_and_exported(run: Path, tmp_path: Path) -> None:
    y = torch.zeros(3, 1, 8, 8)
    result = diffem.load(run)
    assert result.student is not None
    x = result.student.sample(y, n=2, seed=1)
    posterior = result.student.posterior
    assert isinstance(posterior, DenoiserPosterior)
    denoiser = posterior.denoiser
    assert x.shape == (2, 3, 1, 8, 8) and denoiser.take_nfe() == 6
    assert not torch.equal(x[0], x[1])
    export_run(run, tmp_path / "out")
    exported = diffem.load(tmp_path / "out")
    assert exported.student is not None
    torch.testing.assert_close(exported.student.sample(y, n=2, seed=1), x, rtol=0, atol=0)


def test_the_command_draws_by_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "y.npy", np.zeros((3, 8, 8), dtype=np.float32))
    given = ["--input", str(tmp_path / "y.npy"), "--n", "2", "--device", "cpu"]
    sample.main([str(run), *given, "--out", str(tmp_path / "out"), "--student"])
    found = np.load(next((tmp_path / "out").glob("*sample*.npy")))
    result = diffem.load(run, device="cpu")
    assert result.student is not None
    expected = result.student.sample(np.zeros((3, 8, 8), dtype=np.float32), n=2)
    assert np.array_equal(np.sort(found.ravel()), np.sort(expected.numpy().ravel()))
    without = shutil.copytree(run, tmp_path / "without")
    (without / "checkpoints" / "student.safetensors").unlink()
    with pytest.raises(SystemExit):
        sample.main([str(without), *given, "--out", str(tmp_path / "other"), "--student"])
    assert "has no student, as it was trained with student=none" in capsys.readouterr().err


def test_what_it_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student=diff_instruct needs a method whose denoiser is"):
        run_here(tmp_path / "a", *STUDENT, "method=em_mmps")
    with pytest.raises(UserError, match=r"student\.sigma must be a level of the noise schedule"):
        run_here(tmp_path / "b", *STUDENT, "student.sigma=1e-4")
    with pytest.raises(UserError, match=r"student\.steps must be a whole number of at least 1"):
        run_here(tmp_path / "c", *STUDENT, "student.steps=0")
    assert not (tmp_path / "a" / ".hydra").exists()
