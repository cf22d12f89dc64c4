"""From a folder or a file of one's own measurements to samples, by the commands."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from command import run_warm
from PIL import Image
from sklearn.datasets import load_digits

import diffem
from diffem.cli import evaluate, generate, sample
from diffem.data.held import Held
from diffem.result.result import BENCHMARK
from diffem.storage.numbered import free_number

TINY = (
    *("em.rounds=1", "em.steps_per_round=4", "network.channels=[16]", "network.blocks=[1]"),
    *("sampler.steps=4", "prior.steps=3", "metric.prior=8", "metric.samples=2"),
)
STD = 3000.0


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(command: Callable[[Sequence[str]], None], *arguments: object) -> Done:
    """Runs a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command([str(argument) for argument in arguments])
        except SystemExit as exit:
            return Done(int(exit.code or 0), out.getvalue(), err.getvalue())
    return Done(0, out.getvalue(), err.getvalue())


def train(*overrides: str) -> None:
    """Runs `diffem train` to its end."""
    done = run_warm("-m", "diffem", "train", *overrides)
    assert done.returncode == 0, done.stderr


def measurements(n: int = 300) -> np.ndarray:
    """Returns noisy 16-bit images, (n, 8, 8): digits at 200 to 40,200 counts."""
    x = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)[:n] * 2500 + 200
    y = x + STD * np.random.default_rng(0).standard_normal(x.shape)
    return y.clip(0, 65535).round().astype(np.uint16)


def missing(n: int) -> np.ndarray:
    """Returns a mask, (n, 8, 8): where a pixel was measured."""
    return np.random.default_rng(1).random((n, 8, 8)) < 0.6


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "crops"
    folder.mkdir()
    for i, y in enumerate(measurements()):
        Image.fromarray(y).save(folder / f"crop_{i:03d}.tif")
    return folder


def read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def trained(crops: Path) -> Path:
    """A run on the folder, in a directory of another name than the folder's."""
    run_dir = crops.parent / "run é, =(1)"
    train(
        *("dataset=measurements", f"dataset.path={crops}", "corruption=denoising"),
        *(f"corruption.noise.std={STD}", f"run_dir={run_dir}", *TINY),
    )
    return run_dir


def test_a_folder_of_tiffs_in_three_commands(trained: Path, crops: Path, tmp_path: Path) -> None:
    out, generated = tmp_path / "reconstructions", tmp_path / "generated"
    for arguments in (
        ("sample", str(trained), "--input", str(crops), "--n", "2", "--out", str(out)),
        ("generate", str(trained), "--count", "3", "--out", str(generated)),
    ):
        done = run_warm("-m", "diffem", *arguments)
        assert done.returncode == 0 and f"wrote {arguments[-1]}: " in done.stderr, done.stderr
    names = sorted(file.stem for file in crops.iterdir())
    assert sorted(f.stem for f in (out / "mean").iterdir()) == names
    assert sorted(f.stem for f in (out / "std").iterdir()) == names
    assert len(list((out / "samples").iterdir())) == 2 * len(names)
    samples = np.stack([read(out / "samples" / f"{name}_00.tif") for name in names])
    other = np.stack([read(out / "samples" / f"{name}_01.tif") for name in names])
    assert samples.dtype == other.dtype == np.uint16 and samples.shape == (300, 8, 8)
    mean = np.stack([read(out / "mean" / f"{name}.tif") for name in names])
    assert mean.dtype == np.float32
    # Samples are rounded, by 0.5 at most, and clipped.
    inside = (samples > 0) & (samples < 65535) & (other > 0) & (other < 65535)
    assert np.abs(mean - (samples / 2 + other / 2))[inside].max() <= 0.51
    # They belong to their measurements, in their units: the images differ by 9,600 on average.
    assert np.abs(mean - measurements()).mean() < 3 * STD
    files = sorted(generated.iterdir())
    assert [f.name for f in files] == [f"generated_{i:05d}.tif" for i in range(3)]
    assert read(files[0]).dtype == np.uint16 and read(files[0]).shape == (8, 8)


def test_one_image_is_enough_and_the_samples_are_those_of_load(
    trained: Path, crops: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(crops / "crop_007.tif", tmp_path / "one" / "x y.tif")
    run(sample.main, trained, "--input", tmp_path / "one", "--n", 2, "--out", tmp_path / "out")
    x = diffem.load(trained).posterior.sample(measurements()[7:8], n=2)
    for s in range(2):
        written = read(tmp_path / "out" / "samples" / f"x y_{s:02d}.tif")
        rounded = written.astype(np.float64) - x[s, 0].numpy().clip(0, 65535)
        assert np.abs(rounded).max() <= 0.5  # a half is rounded either way


@pytest.mark.parametrize("given", ["a mask", "NaN"])
def test_arrays_with_missing_entries(given: str, tmp_path: Path) -> None:
    y, mask = measurements(40).astype(np.float32), missing(40)
    if given == "a mask":
        file = tmp_path / "y.npz"
        np.savez(file, y=y, operator=mask)
    else:
        file = tmp_path / "y.npy"
        np.save(file, np.where(mask, y, np.nan))
    run_dir, out = tmp_path / "run", tmp_path / "out"
    train(
        *("dataset=measurements", f"dataset.path={file}", "corruption=mask"),
        *(f"corruption.noise.std={STD}", f"run_dir={run_dir}", *TINY),
    )
    run(sample.main, run_dir, "--input", file, "--n", 3, "--out", out)
    run(generate.main, run_dir, "--count", 5, "--out", tmp_path / "new")
    if given == "a mask":
        with np.load(out / "samples.npz") as held:
            samples, mean, std = (held[name] for name in ("samples", "mean", "std"))
        new = np.load(tmp_path / "new" / "generated.npz")["generated"]
    else:
        samples, mean, std = (np.load(out / f"{n}.npy") for n in ("samples", "mean", "std"))
        new = np.load(tmp_path / "new" / "generated.npy")
    assert samples.shape == (40, 3, 8, 8) and samples.dtype == np.float32
    assert new.shape == (5, 8, 8) and new.dtype == np.float32
    assert np.allclose(mean, samples.mean(axis=1), rtol=1e-4, atol=1)
    assert np.allclose(std, samples.std(axis=1, ddof=1), rtol=1e-3, atol=1)
    # What was measured is known better than what was not.
    assert std[mask].mean() < std[~mask].mean()


def digests(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file of a folder."""
    files = (f for f in folder.rglob("*") if f.is_file())
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    train(f"run_dir={run_dir}", "dataset.train=1700", *TINY)
    return run_dir


def test_measurements_that_samples_miss_are_named(trained: Path, tmp_path: Path) -> None:
    """Four of them are out of all that was learned, in the second chunk."""
    y = measurements().astype(np.float64)  # 300: two chunks
    own, other = tmp_path / "own.npy", tmp_path / "other.npy"
    np.save(own, y)
    y[280:284] = 1e6
    np.save(other, y)
    done = [
        run(sample.main, trained, "--input", file, "--n", 2, "--out", tmp_path / file.stem)
        for file in (own, other)
    ]
    x = torch.from_numpy(np.load(tmp_path / "own" / "samples.npy")).double()  # (N, n, 8, 8)
    residual = (torch.from_numpy(np.load(own))[:, None] - x) / STD
    chi2 = float(residual.square().mean())
    assert f"residual χ² {chi2:.4g}, where 1 is expected" in done[0].err
    assert "samples miss" not in done[0].err
    said = " ".join(done[1].err.split())
    assert "samples miss 4 of 300 measurements (the largest χ² is" in said
    assert re.search(r"other\.npy: row 28[0-3] of y\): look whether they are of the run's", said)


@pytest.mark.parametrize("m", [1, 2, 5, 64])
def test_few_entries_are_missed_by_chance_no_more_than_many(
    m: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of m entries χ² is a χ² variable over m: a fixed bound of 3 names 8 % of single ones."""
    chi2 = torch.randn(10_000, m, generator=torch.Generator().manual_seed(m)).square().mean(dim=1)
    entries, held = torch.full((10_000,), m), Held("y", BENCHMARK, np.zeros((10_000, m)))
    sample.report_fit(chi2, entries, held)
    assert "samples miss" not in capsys.readouterr().err
    far = torch.arange(10_000) < 200
    sample.report_fit(torch.where(far, 20 * chi2.amax(), chi2), entries, held)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search("samples miss 20[0-4] of 10000 measurements", said)


def test_evaluate_leaves_what_was_there(benchmark: Path) -> None:
    before = digests(benchmark)
    summary = json.loads((benchmark / "summary.json").read_text())["final"]
    asked = [
        ("sampler.steps=4", "metric.samples=2"),  # the run's own
        ("sampler=heun", "sampler.steps=3"),
        ("sampler=ddim", "--repeats", "2"),
    ]
    for k, arguments in enumerate(asked, start=1):
        done = run(evaluate.main, benchmark, *arguments)
        assert f"wrote {benchmark / f'evaluation_{k:03d}.json'}" in done.out, done.err
    after = digests(benchmark)
    assert {name: after[name] for name in before} == before
    held = [
        json.loads((benchmark / f"evaluation_{k:03d}.json").read_text())
        for k in range(1, len(asked) + 1)
    ]
    assert [e["measurements"] for e in held] == [97, 97, 194]
    of_rounds = ("init_psnr_mean", "hidden_entries", "hidden_mse")
    assert held[0]["final"] == {k: v for k, v in summary.items() if k not in of_rounds}
    assert len({e["final"]["psnr"] for e in held}) == 3


def test_evaluations_are_never_written_over(benchmark: Path) -> None:
    last = benchmark / "evaluation_999.json"
    last.write_text("mine")
    try:
        for k in (1000, 1001):
            done = run(evaluate.main, benchmark)
            assert f"wrote {benchmark / f'evaluation_{k}.json'}" in done.out, done.err
        with (
            free_number(benchmark, "evaluation") as one,
            free_number(benchmark, "evaluation") as other,
        ):
            assert (one, other) == ("evaluation_1002", "evaluation_1003")
            for name in (one, other):
                (benchmark / f"{name}.json").unlink()
    finally:
        for k in (999, 1000, 1001):
            (benchmark / f"evaluation_{k}.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "summary", [{}, {"final": 1}, {"final": {"psnr": "high"}, "rounds": [{}]}]
)
def test_a_summary_without_scores_does_not_keep_a_run_from_being_evaluated(
    benchmark: Path, tmp_path: Path, summary: dict[str, object]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(benchmark, copy)
    (copy / "summary.json").write_text(json.dumps(summary))
    done = run(evaluate.main, copy)
    assert done.code == 0, done.err
    assert "the run" in done.out


def test_a_run_on_a_benchmark_is_evaluated_on_measurements_of_ones_own(
    benchmark: Path, tmp_path: Path
) -> None:
    """Its own settings of the data set, which has none of them, do not stay."""
    y = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8))
    y[:, 2] = np.nan
    np.save(tmp_path / "y.npy", y)
    given = ("dataset=measurements", f"dataset.path={tmp_path / 'y.npy'}", "dataset.heldout=0.9")
    done = run(evaluate.main, benchmark, *given)
    assert done.code == 0, done.err
    file = Path(done.out.split("wrote ")[1].split("\n")[0])
    assert json.loads(file.read_text(encoding="utf-8"))["measurements"] == 18
    done = run(evaluate.main, benchmark, "dataset.train=1600")
    assert "warning: dataset.train changes which measurements are held out" in done.err


def test_generate_from_a_benchmark(benchmark: Path, tmp_path: Path) -> None:
    run(generate.main, benchmark, "--count", 300, "--out", tmp_path / "new", "--seed", 3)
    x = np.load(tmp_path / "new" / "generated.npy")
    assert x.shape == (300, 1, 8, 8) and x.dtype == np.float32 and np.isfinite(x).all()


REFUSED = [
    (["sample", "{run}", "--input", "{crops}", "--out", "{crops}"], "exists and is not empty"),
    (
        ["sample", "{run}", "--input", "{tmp}/none", "--out", "{tmp}/o"],
        "{tmp}/none does not exist",
    ),
    (["sample", "{run}", "--input", "{narrow}", "--out", "{tmp}/o"], "have shape [9, 7]"),
    (["sample", "{tmp}", "--input", "{crops}", "--out", "{tmp}/o"], "holds no run"),
    (["sample", "{run}", "--input", "{crops}", "--n", "0", "--out", "{tmp}/o"], "--n must be"),
    (["sample", "{run}", "--input", "{crops}", "--device", "cuda", "--out", "{tmp}/o"], "device="),
    (["generate", "{run}", "--count", "-1", "--out", "{tmp}/o"], "--count must be"),
    (
        ["generate", "{run}/checkpoints/posterior.safetensors", "--out", "{tmp}/o"],
        "posterior.safetensors holds a posterior alone; give a run directory",
    ),
    (["evaluate", "{run}/checkpoints/posterior.safetensors"], "is a file; give a run directory"),
    (["generate", "{run}", "--out", "{crops}/crop_000.tif"], "exists and is not empty"),
    (["evaluate", "{run}", "dataset.range=[0,9]"], "which works in the range of its training"),
    (["evaluate", "{run}", "em.rounds=3"], "em.rounds=3 has no effect on a finished run"),
    (["evaluate", "{run}", "--repeats", "2"], "--repeats=2 needs a benchmark"),
    (["evaluate", "{tmp}", "sampler=heun"], "holds no finished run"),
    (["evaluate", "{run}", "method=em_mmps"], "method=em_mmps has no effect on a finished run"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_bad_input_is_one_sentence_and_changes_nothing(
    arguments: list[str], sentence: str, trained: Path, crops: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((3, 9, 7), np.float32))
    names = {"run": trained, "crops": crops, "tmp": tmp_path, "narrow": tmp_path / "narrow.npy"}
    before = digests(crops.parent)
    command = {"sample": sample, "generate": generate, "evaluate": evaluate}[arguments[0]]
    done = run(command.main, *(a.format(**names) for a in arguments[1:]))
    assert done.code == 1
    error = done.err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence.format(**names) in error, done.err
    assert digests(crops.parent) == before
    assert {f.name for f in tmp_path.iterdir()} == {"narrow.npy"}
