"""`diffem inspect`: what can be learnt from measurements is said before a run."""

import io
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command import NASTY, run_warm
from in_process import run_here
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from diffem.cli.inspect import command, inspect, main
from diffem.corruption import Denoising, Fourier, GaussianNoise, Mosaic, Radon, make_channel
from diffem.data import files
from diffem.data.held import Held
from diffem.data.survey import Survey, take_survey
from diffem.inspection.survey import DataSurvey, survey_data
from diffem.runtime.errors import UserError

SMALL = (  # of the timed network
    *("network.channels=[16]", "network.blocks=[1]", "em.batch_size=16", "em.chunk_size=32"),
    *("sampler.steps=4", "trainer.accelerator=cpu", "trainer.precision=32-true"),
)
TINY = (
    *(*SMALL, "em.rounds=1", "em.steps_per_round=3", "prior=null", "metric.samples=2"),
    *("metric.subset=4", "metric.heldout=4", "init.iterations=1", "init.rank=4"),
)


def digits(side: int = 16, n: int = 200) -> np.ndarray:
    """Returns clean digits, (n, side, side), 0 to 16,000."""
    x = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)[:n] * 1000
    return np.kron(x, np.ones((side // 8, side // 8)))


def noisy(x: np.ndarray, std: float = 500.0) -> np.ndarray:
    return x + std * np.random.default_rng(0).standard_normal(x.shape)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "y.npz", allow_pickle=False, **arrays)
    return path / "y.npz"


def run(*arguments: object) -> tuple[int, str, str]:
    """Runs the command in this process; returns its exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
    return code, out.getvalue(), err.getvalue()


def warnings(path: Path, *overrides: str) -> str:
    found = inspect(path, [*SMALL, *overrides])
    return "\n".join(w for part in found.findings.values() for w in part.warnings)


def test_the_pixel_that_is_always_masked_is_named(tmp_path: Path) -> None:
    y = noisy(digits())
    y[np.random.default_rng(1).random(y.shape) < 0.4] = np.nan
    y[:, 3, 5] = np.nan
    found = warnings(save(tmp_path, y=y))
    assert "pixel (3, 5) is never measured" in found and "more rounds will not help" in found


def test_the_frequencies_that_a_blur_removes_are_named(tmp_path: Path) -> None:
    x = digits(32, 120)
    blurred = gaussian_filter(x, (0, 1.5, 1.5), mode="mirror", truncate=4)
    found = warnings(
        save(tmp_path, y=noisy(blurred, 100)),
        *("corruption=blur", "corruption.sigma=1.5", "corruption.kernel_size=13"),
    )
    cutoff = re.search(r"frequencies above (0\.\d+) cycles/pixel are removed by all", found)
    # |k̂(f)|² = exp(-(2π σ f)²) is 1 % there; a step of the grid's diagonal is √2 / 32.
    assert cutoff and abs(float(cutoff[1]) - np.sqrt(np.log(100)) / (3 * np.pi)) < 0.07


@pytest.mark.parametrize(("stated", "says"), [(250, "too small"), (500, ""), (1000, "too large")])
def test_a_noise_level_that_is_off_by_two_is_named(
    stated: float, says: str, tmp_path: Path
) -> None:
    path = save(tmp_path, y=noisy(digits(32, 100)))
    found = inspect(
        path, [*SMALL, "corruption=denoising", f"corruption.noise.std={stated}"]
    ).findings["Noise"]
    if not says:
        assert not found.warnings and "std=500 fits" in found.lines[-1]
        return
    (warning,) = found.warnings
    ratio = re.search(r"have ([\d.]+) times", warning)
    assert f"the stated noise is {says}: corruption.noise.std={stated}" in warning
    assert ratio and abs(float(ratio[1]) * stated / 500 - 1) < 0.1


MEASURED = {  # channels whose neighbouring values are no neighbouring places of an image
    "radon": (Radon((1, 16, 16), angles=6), ("corruption.angles=6",)),
    "radon at the same angles": (
        Radon((1, 16, 16), angles=[0.0, 60.0, 120.0]),
        ("corruption.angles=[0,60,120]",),
    ),
    "fourier": (Fourier((1, 16, 16), acceleration=2.0), ("corruption.acceleration=2",)),
    "mosaic": (Mosaic((3, 16, 16)), ()),
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("std", [0.05, 3.0])
@pytest.mark.parametrize("named", MEASURED)
def test_noise_is_not_said_to_be_too_small_where_neighbours_show_other_things(
    named: str, std: float, times: int, tmp_path: Path
) -> None:
    operator, keys = MEASURED[named]
    rng = np.random.default_rng(0)
    x = digits(16, 120) / 8000 - 1
    if "same" in named:  # sinograms that differ by less than each varies: no repeated exposures
        x = 0.9 * x[:1] + 0.1 * gaussian_filter(rng.standard_normal(x.shape), (0, 4, 4))
    clean = torch.from_numpy(x[:, None]).float().expand(-1, *operator.shape)
    channel = make_channel(operator, GaussianNoise(std))
    drawn = channel.draw(clean, torch.Generator().manual_seed(0))
    arrays = {"y": drawn.y.numpy()} | (
        {} if "same" in named else {"operator": drawn.operator.numpy()}
    )
    found = inspect(
        save(tmp_path, **arrays),
        [
            *(*SMALL, f"corruption={named.partition(' ')[0]}", *keys, "prior=null"),
            *(f"dataset.shape={list(operator.shape)}", "dataset.range=[-1,1]"),
            f"corruption.noise.std={std * times}",
        ],
    ).findings
    said = " ".join(found["Noise"].warnings + found["Noise"].lines)
    assert "too small" not in said and "flat region" not in said
    assert not any("crops" in w for part in found.values() for w in part.warnings)
    if named == "mosaic":
        assert "the noise cannot be told" in said and not found["Noise"].warnings
        return
    assert "at most" in said and "repeated" not in said and "show other things" in said
    # An upper bound that is below what is stated says that this is too large.
    assert ("too large" in said) == (times == 3 and std == 3)


def test_the_predicted_time_of_a_round_is_within_a_half(tmp_path: Path) -> None:
    """Of both, M- and E-step; another process may take a core meanwhile: the best of three."""
    path = save(tmp_path, y=noisy(digits(8, 1000)))
    settings = [
        *("network.channels=[32,64]", "network.blocks=[1,1]", "prior=null", "em.rounds=1"),
        *("em.steps_per_round=40", "em.batch_size=64", "sampler.steps=14", "em.guard=null"),
        *("em.chunk_size=128", "trainer.accelerator=cpu", "trainer.precision=32-true"),
        *("metric.subset=16", "metric.samples=2"),
        *("init.iterations=2", "init.rank=4", "init.components=2", "metric.heldout=8"),
    ]
    ratio = 0.0
    for attempt in range(3):
        found = inspect(path, [*settings, f"run_dir={tmp_path / str(attempt)}"])
        overrides = [o for o in found.overrides if not o.startswith("run_dir=")]
        run_dir = run_here(tmp_path / str(attempt), *overrides, "init=mixture")
        last = json.loads((run_dir / "summary.json").read_text())["rounds"][-1]
        cost = found.cost
        ratio = (cost.m_step + cost.e_step) / (last["m_step_seconds"] + last["e_step_seconds"])
        if 2 / 3 < ratio < 3 / 2:
            return
    raise AssertionError(f"predicted over measured: {ratio:.2f}")


def train_with(text: str, run_dir: Path) -> None:
    """Trains for a few steps with the command that a report ends with."""
    shown = text[text.index("diffem train") :].partition("\n\n")[0].replace("\\\n", " ")
    words = shlex.split(shown)
    settings = [word for word in words[2:] if not word.startswith("run_dir=")]
    done = run_warm("-m", "diffem", "train", *settings, *TINY, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["em.rounds=2"], True),
        (["em.rounds=2", "em.relax=null"], False),
        (["em.rounds=1"], False),  # the last round is not relaxed
    ],
)
def test_what_an_over_relaxed_e_step_costs_is_said(
    more: list[str], said: bool, tmp_path: Path
) -> None:
    path = save(tmp_path, y=noisy(digits(8, 60)))
    code, out, err = run(path, *SMALL, *more, "--out", tmp_path / "look")
    assert code == 0, err
    assert ("E-steps but the last take up to 2 times as long" in " ".join(out.split())) is said


def test_the_printed_command_trains(tmp_path: Path) -> None:
    folder = tmp_path / "my crops (é)"
    folder.mkdir()
    path = save(folder, y=noisy(digits(32, 60)))
    code, out, err = run(path, *SMALL, "--out", tmp_path / "look")
    assert code == 0, err
    assert "its standard deviation is" in out and "a round on cpu" in out
    assert "corruption=denoising is assumed" in out
    train_with(out, tmp_path / "run")
    assert (tmp_path / "look" / "inspect.png").stat().st_size > 10_000
    text = (tmp_path / "look" / "inspect.yaml").read_text()
    settings = yaml.safe_load(text)
    assert text.startswith("# @package _global_\n# diffem train")
    assert {"override /corruption": "denoising"} in settings["defaults"]
    assert abs(settings["corruption"]["noise"]["std"] / 500 - 1) < 0.2


def test_the_measurements_are_read_once_and_values_are_no_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()

    def count(held: Held, number: int) -> Survey:
        read.append(number)
        return take_survey(held, number)

    monkeypatch.setattr(files, "take_survey", count)
    folder, look = tmp_path / NASTY, tmp_path / "look"
    folder.mkdir()
    np.save(folder / "psf.npy", np.ones((3, 3)))
    path = save(folder, y=noisy(digits(8)))
    lens = ["corruption=point_spread", f"corruption.kernel={folder / 'psf.npy'}"]
    code, _, err = run(path, *SMALL, *lens, "prior=null", "seed=3", "--out", look)
    assert code == 0, err
    assert read == [200]
    settings = yaml.safe_load((look / "inspect.yaml").read_text())
    assert settings["prior"] is None and settings["seed"] == 3
    assert settings["dataset"]["path"] == str(path)
    assert settings["corruption"]["kernel"] == str(folder / "psf.npy")
    chosen = {key.removeprefix("override /") for choice in settings["defaults"] for key in choice}
    assert chosen == {"dataset", "corruption"}


def test_a_camera_s_counts_train_as_photon_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    light = 0.05 * gaussian_filter(digits(32, 100), (0, 1.5, 1.5))
    y = np.round(100 + 2 * rng.poisson(light) + 5 * rng.standard_normal(light.shape))
    code, out, err = run(save(tmp_path, y=y.astype(np.uint16)), *SMALL, "corruption=denoising")
    assert code == 0, err
    assert "units of the data a photon" in out and "corruption/noise=poisson_gaussian" in out
    assert "outside dataset.range" not in err  # which it has chosen itself
    photons = re.search(r"corruption.noise.photons=([\d.e+]+)", out)
    bounds = re.search(r"dataset.range=\[([\d.]+),([\d.]+)\]", out)
    assert photons and bounds
    low, high = float(bounds[1]), float(bounds[2])
    assert abs((high - low) / float(photons[1]) / 2 - 1) < 0.1
    train_with(out, tmp_path / "run")


def test_speckle_is_inspected_and_trains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    light = gaussian_filter(rng.random((64, 32, 32)), (0, 8, 8), mode="wrap")
    light = 1000 * (light - light.min()) / np.ptp(light)
    y = 100 + light * (1 + 0.2 * rng.standard_normal(light.shape))
    y += 5 * rng.standard_normal(light.shape)
    code, out, err = run(save(tmp_path, y=y), *SMALL)
    assert code == 0, err
    assert "level relative to the intensity" in out and "corruption/noise=speckle" in out
    level = re.search(r"corruption.noise.speckle=([\d.]+)", out)
    assert level and abs(float(level[1]) / 0.2 - 1) < 0.1
    train_with(out, tmp_path / "run")


def test_vectors_under_given_matrices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 2, 5))
    a[..., 4] = 0
    y = np.einsum("nmd,nd->nm", a, rng.standard_normal((200, 5)))
    path = save(tmp_path, y=y, operator=a)
    given = [
        "corruption=projection",
        "corruption.rows=2",
        "dataset.shape=[5]",
        "network=mlp",
        "em.batch_size=16",
    ]
    with pytest.raises(UserError, match="must be given, since the entries of a"):
        inspect(path, given)
    found = inspect(path, [*given, "corruption.noise.std=0.1", "prior=null"])
    assert "entry (4) is never measured" in found.findings["What can be learnt"].warnings[0]


def test_saturated_and_constant_measurements_are_named(tmp_path: Path) -> None:
    y = noisy(digits()).clip(None, 12_000)
    y[7] = 5.0
    found = warnings(save(tmp_path, y=y), "corruption.noise.std=500")
    assert "are the largest one, 12000: the detector clips there" in found
    assert "1 of 200 measurements have the same value everywhere" in found


@pytest.mark.parametrize("value", [0, 4000, 40_000])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_dead_pixels_are_named_and_no_noise(value: int, dtype: type, tmp_path: Path) -> None:
    """Also of a value that others have, and of the smallest or the largest one."""
    y = (noisy(digits()) + 3000).round().astype(dtype)
    alone = inspect(save(tmp_path, y=y), list(SMALL))
    assert not len(alone.survey.dead)
    y[:, [2, 5, 11], [3, 9, 4]] = value
    found = inspect(save(tmp_path, y=y), list(SMALL))
    said = found.findings["Data"].warnings[0]
    assert said.startswith("3 pixels have the same value in all measurements ((2, 3), (5, 9), ")
    assert "the detector clips" not in " ".join(found.findings["Data"].warnings)
    assert found.noise.law is alone.noise.law
    assert found.noise.std is not None and alone.noise.std is not None
    assert found.noise.std.value == pytest.approx(alone.noise.std.value, rel=0.05)


def surveyed(path: Path) -> DataSurvey:
    source = files.MeasurementFiles(str(path), None)
    return survey_data(source.held, make_channel(Denoising(source.shape), GaussianNoise(1.0)))


def counts(n: int) -> np.ndarray:
    """Returns counts of 2 to 10 photons a pixel, (n, 28, 28)."""
    x = np.pad(digits(n=n) / 1000, ((0, 0), (6, 6), (6, 6)))
    return np.random.default_rng(0).poisson(2 + 0.5 * x).astype(np.uint16)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_live_pixels_of_few_photons_are_not_dead(count: int, tmp_path: Path) -> None:
    """Counts are the same three times by chance in many of a few measurements' pixels."""
    y = counts(count)
    assert (y == y[0]).all(axis=0).any()  # as a dead one
    found = surveyed(save(tmp_path, y=y))
    assert not len(found.dead)


def test_a_dead_pixel_of_few_measurements_repeats_twice(tmp_path: Path) -> None:
    y = noisy(digits(n=4))
    y[:, 2, 3] = 7
    assert surveyed(save(tmp_path, y=y)).dead.tolist() == [[2, 3]]
    y[:2, 2, 3] = np.nan
    assert not len(surveyed(save(tmp_path, y=y)).dead)


@pytest.mark.parametrize(("count", "told"), [(10, False), (14, True)])  # 0.2 and 0.007 by chance
def test_as_many_measurements_as_chance_asks_for(count: int, told: bool, tmp_path: Path) -> None:
    y = counts(count)
    y[:, 2, 3] = 7
    assert len(surveyed(save(tmp_path, y=y)).dead) == told


def test_dead_pixels_are_told_from_counts_that_repeat(tmp_path: Path) -> None:
    """And not where measurements are so few that they might be by chance."""
    y = counts(100)
    y[:, 2, 3] = 7
    found = surveyed(save(tmp_path, y=y))
    assert found.dead.tolist() == [[2, 3]]
    y[1::2, 2, 3] = 8
    found = surveyed(save(tmp_path, y=y))
    assert not len(found.dead)


def test_a_pixel_that_is_always_clipped_is_not_dead(tmp_path: Path) -> None:
    """As at a border that sees no light: others are clipped to the same value."""
    y = noisy(digits()).clip(0, None)
    y[:, 0] = 0
    found = inspect(save(tmp_path, y=y), [*SMALL, "corruption.noise.std=500"])
    assert not len(found.survey.dead)
    said = found.findings["Data"].warnings[0]
    assert "are the smallest one, 0: the detector clips there" in said


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dataset.path=other.npy"], "dataset.path is not for inspect"),
        (["corruption=fog"], "corruption=fog is not a choice"),
        (["corruption=blur"], "corruption.sigma must be given with dataset=measurements"),
        (["corruption.noise.std=-1"], "corruption.noise.std must be a positive number"),
        (["method=em_dps", "sampler=heun"], "sampler=HeunSampler has no effect"),
    ],
)
def test_mistakes_are_one_sentence(overrides: list[str], says: str, tmp_path: Path) -> None:
    code, _, err = run(save(tmp_path, y=noisy(digits(8))), *overrides)
    assert code == 1 and says in err and "Traceback" not in err


def test_a_path_that_is_none(tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "none.npy")
    assert code == 1 and "dataset.path" in err and "does not exist" in err
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "mine.txt").write_text("kept")
    code, _, err = run(save(tmp_path, y=noisy(digits(8))), "--out", tmp_path / "look")
    assert code == 1 and "exists and is not empty" in err
    assert (tmp_path / "look" / "mine.txt").read_text() == "kept"


def test_the_command_is_one_for_a_shell() -> None:
    words = [
        "dataset.path='my (1) crops'",
        "dataset.range=[0,1]",
        *(f"seed={i}" for i in range(30)),
    ]
    shown = command(words)
    assert max(map(len, shown.splitlines())) <= 100
    assert shlex.split(shown.replace("\\\n", " ")) == ["diffem", "train", *words]
