"""Runs whose samples stay in the images' range, from the command to the loaded result."""

import json
import math
from pathlib import Path

import pytest
import torch
from in_process import run_here

from diffem import load
from diffem.cli.compose import compose_config
from diffem.cli.evaluate import without_lost_keys
from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.result import sampler_bounds
from diffem.result.candidate import Candidate
from diffem.result.onnx_graph import write_onnx
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

OUTSIDE = "+metric.metrics.outside={_target_:diffem.metric.Outside}"
CHOICES = {
    "bounds": ("sampler.bounds=[-1,1]",),
    "reflected": ("method=reflected", "schedule.sigma_max=20"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_no_pixel_is_outside_in_any_round_or_sample(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = (*CHOICES[name], "corruption=mask", "prior={steps:2}", "metric.prior=4", OUTSIDE)
    run_dir = run_here(tmp_path / "run", *choices)
    advised = "set schedule.sigma_max=5" in " ".join(capsys.readouterr().err.split())
    assert advised == (name == "reflected")
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = [*summary["rounds"], summary["final"]]
    assert len(rows) == 3 and all(row["outside"] == 0 for row in rows)
    assert "init_psnr_mean" in summary["final"]  # of the Gaussian mixture as it was
    result = load(run_dir)
    assert result.prior is not None
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.3))
    y = channel.draw(torch.rand(4, 1, 8, 8, generator=generator(0)), generator(1))
    large = torch.rand(1, 1, 12, 9, generator=generator(2))
    for x in (
        result.posterior.sample(y.y, 2, operator=y.operator),
        result.posterior.sample(large, 2, operator=torch.ones(1, 1, 12, 9)),
        result.prior.sample(5),
    ):
        assert x.abs().max() <= 1
    if name == "reflected":  # nothing of it is E[x | x_t, y] of a Gaussian x_t
        with pytest.raises(UserError, match="without a denoiser of x given y"):
            Candidate.of(result)
        with pytest.raises(UserError, match="--onnx"):
            write_onnx(tmp_path, result, prior=run_dir / "checkpoints" / "prior.safetensors")


COUNTS = ("corruption=denoising", "corruption/noise=poisson", "corruption.noise.photons=10")
CAMERA = ("corruption/noise=poisson_gaussian", "corruption.noise.photons=10")


def test_photon_counts_keep_samples_from_less_than_no_light(tmp_path: Path) -> None:
    run_dir = run_here(tmp_path / "run", *CAMERA, "prior={steps:2}", "metric.prior=4", OUTSIDE)
    result = load(run_dir)
    assert result.prior is not None
    y = torch.tensor([-4.0, 4.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    samples = result.posterior.sample(y, 4)
    assert samples.min() == -1 and samples.max() > 1
    assert result.prior.sample(8).min() >= -1


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ((), None),
        (("corruption/noise=speckle",), None),
        (COUNTS, (-1, math.inf)),
        (("corruption=denoising", *CAMERA), (-1, math.inf)),
        ((*COUNTS, "sampler=heun"), (-1, math.inf)),
        ((*COUNTS, "sampler.bounds=null"), None),
        ((*COUNTS, "sampler.bounds=[-1,1]"), (-1, 1)),
        (("sampler.bounds=[-1,inf]",), (-1, math.inf)),
    ],
)
def test_what_auto_means(choices: tuple[str, ...], expected: tuple[float, float] | None) -> None:
    assert sampler_bounds(compose_config(choices)) == expected


@pytest.mark.parametrize("choices", [CAMERA, ("sampler.bounds=[-1,1]",)])
def test_a_student_keeps_the_bounds_of_its_teacher(
    choices: tuple[str, ...], tmp_path: Path
) -> None:
    run_dir = run_here(
        tmp_path / "run", *choices, "student=diff_instruct", "student.steps=2", OUTSIDE
    )
    student = load(run_dir).student
    assert student is not None
    samples = student.sample(torch.tensor([-4.0, 4.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8), 4)
    assert samples.min() == -1 and (samples.max() > 1) == (choices == CAMERA)


def test_an_evaluation_by_another_sampler_keeps_the_bounds() -> None:
    own, other = ["sampler.bounds=[-1,1]", "sampler.steps=9"], ["sampler=heun"]
    assert without_lost_keys([*own, *other], other) == [*own, *other]
