"""`diffem calibrate` and `diffem.calibrate`: what they draw, write and say."""

import errno
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb_file
from command import wait_until
from in_process import run_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_sample import TINY, run, train
from torch import Tensor

import diffem
from diffem.cli import calibrate, evaluate, generate, sample, score
from diffem.cli.calibrate import heldout_measurements
from diffem.corruption import Channel, Measurement
from diffem.metric import calibrate as metric_calibrate
from diffem.metric.calibration import DISTANCE
from diffem.metric.energy import EnergyTest, energy_test
from diffem.posterior import Posterior
from diffem.report.calibration import PAIRS, findings
from diffem.report.record import read_record as read_record_of
from diffem.report.verdict import SMALL
from diffem.result import PosteriorSampler, PriorSampler, Result
from diffem.result.simulation import Simulation
from diffem.runtime.errors import UserError
from diffem.storage import entries
from diffem.storage.atomic import read_record, write_record
from diffem.storage.numbered import free_number

SIZE = ("--n", "3", "--measurements", "40")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    train(f"run_dir={run_dir}", "dataset.train=1700", *TINY)
    return run_dir


def test_a_run_that_is_read_only_is_refused_before_anything_is_drawn(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries.os, "access", lambda path, mode: path != trained)
    monkeypatch.setattr(calibrate, "calibrate_run", lambda *_, **__: pytest.fail("it drew"))
    monkeypatch.setattr(evaluate, "restore", lambda *_, **__: pytest.fail("it was read"))
    for command in (calibrate.main, evaluate.main):
        done = run(command, trained)
        assert done.code == 1 and f"{trained} cannot be written; allow this user" in done.err


def test_it_writes_numbered_files_and_nothing_else(trained: Path) -> None:
    before = {f: f.read_bytes() for f in trained.rglob("*") if f.is_file()}
    for k in (1, 2):
        done = run(calibrate.main, trained, *SIZE)
        assert f"wrote {trained / f'calibration_{k:03d}.json'}" in done.out, done.err
    assert all(f.read_bytes() == content for f, content in before.items())
    one, two = (json.loads((trained / f"calibration_{k:03d}.json").read_text()) for k in (1, 2))
    assert one == two and one["seed"] == 0
    rounds = json.loads((trained / "rounds.json").read_text())["rounds"]
    assert one["round"] == rounds[-1]["round"]  # by which it is told from one of fewer rounds
    assert one["simulated"]["measurements"] == 40 and one["simulated"]["samples"] == 3
    assert set(one["simulated"]["coverage"]) == {"50", "90"}
    assert one["truth"]["measurements"] == 40  # a benchmark's truth is known
    assert 0 < one["measurement_test"]["p"] <= 1 and one["measurement_test"]["pairs"] == 40
    assert (trained / "figures" / "calibration_002.png").is_file()
    for words in (*one["verdict"], *one["blind_spots"], "held-out truth †"):
        assert words in done.out
    # The run is still one that others can be started from and resumed.
    assert diffem.load(trained).summary is not None


@pytest.mark.parametrize(("command", "arguments"), [(calibrate.main, SIZE), (evaluate.main, ())])
def test_a_disk_that_is_full_at_a_figure_costs_no_scores(
    command: Callable[..., None],
    arguments: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    own = tmp_path / "run"
    shutil.copytree(trained, own)
    before = set(own.rglob("*"))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    done = run(command, own, *arguments)
    (file,) = set(own.rglob("*")) - before
    assert done.code == 1 and json.loads(file.read_text())
    assert f"wrote {file}" in done.out and "│" in done.out  # the table
    assert "Traceback" not in done.err
    assert f"no space left on the disk while writing {own / 'figures'}" in done.err
    assert f"; {file} is whole, its figures are not" in done.err


def test_from_python_it_is_the_command_s(trained: Path) -> None:
    run(calibrate.main, trained, *SIZE)
    held = json.loads(max(trained.glob("calibration_*.json")).read_text())
    found = diffem.calibrate(trained, n=3, measurements=40)
    assert json.loads(json.dumps(found.to_plain())) == held["simulated"]
    other = diffem.calibrate(diffem.load(trained), n=3, measurements=40, seed=1)
    assert other.to_plain() != found.to_plain()


def test_a_copied_run_is_calibrated_by_its_weights_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("posterior.safetensors", "prior.safetensors"):
        content = (trained / "checkpoints" / name).read_bytes()
        (tmp_path / "checkpoints" / name).write_bytes(content)
    done = run(calibrate.main, tmp_path, *SIZE)
    assert "the run's measurements are left out: " in done.err
    held = json.loads((tmp_path / "calibration_001.json").read_text())
    assert held["truth"] is None and held["measurement_test"] is None


def test_measurements_of_another_shape_by_now_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "y.npy"
    np.save(file, np.random.default_rng(0).uniform(-1, 1, (60, 8, 8)).astype(np.float32))
    run_dir = tmp_path / "run"
    mine = ("dataset=measurements", f"dataset.path={file}", "dataset.heldout=0.3")
    run_here(run_dir, *mine, "prior={steps:2}")
    np.save(file, np.load(file)[:, :6, :6])
    done = run(calibrate.main, run_dir, *SIZE)
    assert "the run's measurements are left out: dataset: the measurements are of" in done.err
    held = json.loads((run_dir / "calibration_001.json").read_text())
    assert held["measurement_test"] is None
    done = run(evaluate.main, run_dir)
    assert done.code == 1
    assert "of images [1, 6, 6], and the run was trained on [1, 8, 8]" in done.err


@pytest.mark.parametrize(
    ("factor", "shown"), [(0.0, False), (0.5, True), (2.0, True), (200, False)]
)
def test_only_a_factor_that_is_taken_is_recommended(factor: float, shown: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, samples, y = (
        torch.randn(*size, generator=generator) for size in ((20, 3), (2, 20, 3), (20, 3))
    )
    found = replace(metric_calibrate(x, samples, y, generator), factor=(factor, 0.1))
    said = findings(found, None, None)[1]
    assert (f"--recalibrate {factor:.3f})" in said) == shown
    for p, wrong in ((0.5, False), (0.001, True)):  # measurements tell a wrong prior
        test = EnergyTest(0.0, 1.0, p, torch.zeros(PAIRS))
        said = findings(found, test, None)[1]
        assert ("--recalibrate" in said and shown) == (shown and not wrong)
        assert ("may be the fault of the prior" in said) == (shown and wrong)
    # Of fewer pairs no p-value is small: that it is not tells nothing of the prior.
    few = EnergyTest(0.0, 1.0, 0.5, torch.zeros(PAIRS - 1))
    _, spread, last = findings(found, few, None)
    assert "--recalibrate " not in spread or not shown
    assert "is not known: it takes 8 of them, and there are 7" in last


def test_swaps_of_few_pairs_give_no_small_p() -> None:
    draw = torch.Generator().manual_seed(0)
    apart = [
        energy_test(torch.zeros(n, 1), 100 + torch.rand(n, 1, generator=draw), draw)
        for n in (PAIRS - 1, PAIRS + 1)
    ]
    assert apart[0].p > SMALL > apart[1].p


def test_a_spread_that_may_be_right_is_said_with_its_error() -> None:
    draw = torch.Generator().manual_seed(0)
    x, samples, y = (torch.randn(*size, generator=draw) for size in ((20, 3), (2, 20, 3), (20, 3)))
    found = replace(metric_calibrate(x, samples, y, draw), factor=(1.225, 0.136))
    assert "1.225 ± 0.136" in findings(found, None, None)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--n", "1"), "--n must be a whole number of at least 2"),
        (("--measurements", "5"), "--measurements must be a whole number of at least 16"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[str, ...], said: str, trained: Path
) -> None:
    done = run(calibrate.main, trained, *arguments)
    assert done.code == 1 and said in done.err


def test_a_run_without_a_prior_is_refused(trained: Path) -> None:
    result = replace(diffem.load(trained), prior=None, summary=None)
    with pytest.raises(UserError, match="has no prior, as it was trained with prior=null"):
        diffem.calibrate(result, n=3, measurements=40)


class Normal:
    """The prior N(0, I)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def sample(self, n: int) -> Tensor:
        """Draws n samples."""
        return torch.randn(n, *self.shape)


class Exact(Posterior):
    """The exact posterior of N(0, I) under a mask and noise; or its prior, whatever y is."""

    def __init__(self, *, ignores_y: bool = False) -> None:
        self.ignores_y = ignores_y

    def draw(self, measurement: Measurement) -> Tensor:
        y, mask, std = measurement
        z = torch.randn(y.shape)
        if self.ignores_y:
            return z
        precision = 1 + mask / std[:, :, None, None] ** 2
        return mask * y / std[:, :, None, None] ** 2 / precision + z / precision.sqrt()


@pytest.mark.parametrize("ignores_y", [False, True])
def test_known_answers_through_the_whole_command(trained: Path, ignores_y: bool) -> None:
    """The run's own channel, with an exact prior and sampler, and with one that ignores y."""
    result = diffem.load(trained, device="cpu")
    assert result.prior is not None
    scale, sampling, channel = result.scale, result.posterior.sampling, result.channel
    prior = PriorSampler(Normal(channel.shape), scale, sampling)  # type: ignore[arg-type]
    sampler = PosteriorSampler(Exact(ignores_y=ignores_y), channel, scale, sampling)
    exact: Result = replace(result, prior=prior, posterior=sampler)
    found = diffem.calibrate(exact, n=19, measurements=200)
    assert found.p["ranks"] > 0.01
    for level, fraction in (("50", 0.5), ("90", 0.9)):
        value, error = found.coverage[level]
        assert abs(value - fraction) < 4 * error
    assert (found.quantities[DISTANCE] < 0.01) == ignores_y
    assert (found.p["all"] < 0.01) == ignores_y


def test_the_measurements_are_those_of_the_channel(trained: Path) -> None:
    """Freshly drawn, with a mask and noise of their own."""
    result, drawn = diffem.load(trained, device="cpu"), list[Tensor]()

    class Spy(Channel):
        def draw(self, x: Tensor, generator: torch.Generator) -> Measurement:
            drawn.append(x)
            return result.channel.draw(x, generator)

        def embed(self, measurement: Measurement) -> Tensor:
            return result.channel.embed(measurement)

        def lift(self, measurement: Measurement) -> Tensor:
            return result.channel.lift(measurement)

    spied = replace(result, channel=Spy(result.channel.shape))
    simulation = Simulation.of(spied, 2, 30, seed=None)
    assert len(drawn) == 1 and drawn[0].shape == (30, 1, 8, 8)
    assert 0.4 < float((simulation.lifted == 0).double().mean()) < 0.6


def test_samples_are_scaled_about_their_mean_on_request(trained: Path, tmp_path: Path) -> None:
    y = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32)
    y[:, :, 2] = np.nan
    np.save(tmp_path / "y.npy", y)
    samples = {}
    for factor in ("1", "1.5"):
        done = run(
            sample.main, trained, "--input", tmp_path / "y.npy", "--n", 4,
            "--out", tmp_path / factor, "--recalibrate", factor,
        )  # fmt: skip
        assert done.code == 0, done.err
        samples[factor] = np.load(tmp_path / factor / "samples.npy").astype(np.float64)
    mean = samples["1"].mean(axis=1, keepdims=True)
    assert np.allclose(samples["1.5"], mean + 1.5 * (samples["1"] - mean), atol=1e-5)
    done = run(
        sample.main, trained, "--input", tmp_path / "y.npy", "--n", 1,
        "--out", tmp_path / "one", "--recalibrate", 1.5,
    )  # fmt: skip
    assert done.code == 1 and "--recalibrate has no effect on a single sample" in done.err


def test_it_is_added_to_what_the_run_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    board = "{_target_:lightning.pytorch.loggers.TensorBoardLogger,save_dir:${run_dir}"
    more = f"+logger.tensorboard={board},name:tensorboard,version:''}}"
    train(f"run_dir={run_dir}", "dataset.train=60", "logger=wandb", more, *TINY)
    (before,) = run_dir.glob("wandb/offline-run-*")
    done = run(calibrate.main, run_dir, "--n", "2", "--measurements", "16")
    assert "later: wandb sync" in done.err
    (new,) = set(run_dir.glob("wandb/offline-run-*")) - {before}
    assert new.name.rpartition("-")[2] == before.name.rpartition("-")[2]  # the same W&B run
    (file,) = new.glob("run-*.wandb")
    wait_until(lambda: wandb_file.exit_code(file) is not None)
    held = json.loads((run_dir / "calibration_001.json").read_text())["simulated"]
    assert wandb_file.summary(file)["calibration/p/all"] == held["p"]["all"]
    assert len(wandb_file.table(file, "calibration_coverage")) == 21 * 2 + 2
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert "calibration_001/coverage/TARP" in events.Tags()["scalars"]


def test_a_run_without_those_loggers_gets_no_folder_of_them(trained: Path) -> None:
    assert not (trained / "wandb").exists() and not (trained / "tensorboard").exists()


def test_figures_that_is_a_file_is_refused_before_anything_is_drawn(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "figures")
    (copy / "figures").touch()
    monkeypatch.setattr(Simulation, "of", lambda *_, **__: pytest.fail("it was drawn"))
    done = run(calibrate.main, copy, *SIZE)
    assert done.code == 1 and "cannot be written" in done.err and str(copy / "figures") in done.err


def test_other_measurements_of_the_same_shape_are_left_out(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    assert heldout_measurements(diffem.load(copy)) is not None
    record = read_record(copy / "run.json") or {}
    write_record(copy / "run.json", {**record, "data_sha256": "0" * 64})
    said = io.StringIO()
    with redirect_stderr(said):
        assert heldout_measurements(diffem.load(copy)) is None
    assert "are not those that the run in" in said.getvalue().replace("\n", " ")


def test_a_prior_that_is_missing_is_not_called_null(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    (copy / "checkpoints" / "prior.safetensors").unlink()
    for command, arguments in (
        (calibrate.main, SIZE),
        (generate.main, ("--out", tmp_path / "out")),
        (score.main, ("--input", tmp_path, "--out", tmp_path / "out")),
    ):
        done = run(command, copy, *arguments)
        assert "prior.safetensors is missing, and the run has trained a prior" in done.err


def test_a_calibration_under_way_does_not_hide_the_one_before(
    trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for file in copy.glob("calibration_*.json"):
        file.unlink()
    (copy / "calibration_001.json").write_text('{"verdict": []}')
    with free_number(copy, "calibration") as name:
        assert name == "calibration_002"
        assert read_record_of(copy).calibration == {"verdict": []}
