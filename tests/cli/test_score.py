"""`diffem score`: how probable measurements are under what a run learned."""

import csv
import errno
import re
import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_here
from sklearn.datasets import load_digits

import diffem
from diffem.cli.score import main

WIDTHS = ("corruption=blur", "corruption.noise.std=0.3", "em.guard=null")


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on blurs of several widths, with a prior."""
    folder = tmp_path_factory.mktemp("blurred") / "run"
    choices = (*WIDTHS, "corruption.sigma=[0.5,1.5]", "prior={steps:2}")
    return run_here(folder, *choices)


@pytest.fixture(scope="module")
def denoised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on noise alone, with a prior."""
    return run_here(tmp_path_factory.mktemp("denoised") / "run", "prior={steps:2}")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "y.npy"
    np.save(path, load_digits(return_X_y=True)[0][:30].reshape(30, 8, 8) / 8 - 1)
    return path


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def score(*arguments: object) -> str:
    """Returns what the command says, which ends with an error or not."""
    said = StringIO()
    with redirect_stderr(said):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit:
            assert exit.code == 1
    return said.getvalue().replace("\n", " ")


def test_candidates_are_compared(blurred: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    channels = [f"--channel=corruption.sigma={width}" for width in (0.5, 1, 1.5)]
    said = score(blurred, "--input", digits, *channels, "--n", 2, "--out", out)
    found = rows(out)
    assert len(found) == 30
    assert {row["entries"] for row in found} == {"64"}
    assert found[3]["measurement"] == f"{digits.name}: row 3 of y"
    for row in found:
        logs = [float(row[f"log p(y) corruption.sigma={w}"]) for w in (0.5, 1, 1.5)]
        shares = [float(row[f"probability corruption.sigma={w}"]) for w in (0.5, 1, 1.5)]
        assert abs(sum(shares) - 1) < 1e-3
        assert np.argmax(logs) == np.argmax(shares)
    assert "corruption.sigma=0.5: the most probable one for" in said
    assert f"wrote {out}: scores.csv, surprise.npy, score.png" in said
    assert np.load(out / "surprise.npy").shape == (30, 1, 8, 8)


def test_a_disk_that_is_full_at_the_figure_costs_no_scores(
    denoised: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    said = score(denoised, "--input", digits, "--n", 2, "--out", out)
    assert "-log p(y) per measured entry" in said
    fault = f"no space left on the disk while writing {out / 'score.png'}"
    assert f"{fault}; {out} is whole, its figures are not" in said
    assert len(rows(out)) == 30 and {f.name for f in out.iterdir()} == {
        "scores.csv",
        "surprise.npy",
    }


def test_the_same_command_gives_the_same_numbers(
    blurred: Path, digits: Path, tmp_path: Path
) -> None:
    for name in "ab":
        said = score(blurred, "--input", digits, "--channel=corruption.sigma=1",
                     "--n", 1, "--out", tmp_path / name)  # fmt: skip
        assert "-log p(y) per measured entry" in said
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert {row["error corruption.sigma=1"] for row in rows(tmp_path / "a")} == {"nan"}
    maps = np.load(tmp_path / "a" / "surprise.npy").reshape(30, -1).mean(axis=1)
    pixels = [float(row["mean surprise of pixels"]) for row in rows(tmp_path / "a")]
    assert pixels == pytest.approx(maps.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--channel=corruption.width=1"], "there is no corruption.width"),
        (["--channel=em.rounds=1"], "--channel em.rounds=1 must be a setting of the run's"),
        (["--channel=corruption.sigma=-1"], "corruption.sigma"),
        (["--channel=corruption.sigma=1", "--channel=corruption.sigma=1"], "is given twice"),
        (["--channel=corruption.sigma='1"], "has a quote that is not closed"),
        (["--channel=corruption.sigma=[1"], "corruption.sigma=[1 cannot be read"),
        (["--channel=corruption.sigma=!!python/name:os.system"], "cannot be read"),
        (["--channel=corruption.sigma=${oc.env:HOME}"], "corruption.sigma must be a value"),
        (["--channel=corruption.sigma='{_target_: os.system}'"], "must be a value"),
        (
            ["--channel='corruption.sigma={_target_: os.getcwd}'"],
            "corruption.sigma must be a value",
        ),
        (["--channel=corruption._target_=os.getcwd"], "there is no corruption._target_ to change"),
        (["--channel=corruption.learn=[noise]"], "there is no corruption.learn to change"),
        (["--channel=corruption.noise=poisson"], "the run has corruption.noise.std"),
        (["--channel=corruption.noise=null"], "there is no corruption.noise to change"),
        (["--channel=corruption.sigma=1 corruption.sigma=2"], "corruption.sigma is given twice"),
        (["--n", "0", "--channel=corruption.sigma=1"], "--n must be"),
        ([], "operator"),  # of each measurement its own width is needed
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, blurred: Path, digits: Path, tmp_path: Path
) -> None:
    said = score(blurred, "--input", digits, *arguments, "--out", tmp_path / "out")
    assert said.startswith("error: ")
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_a_channel_that_the_network_was_not_made_for_is_one_sentence(tmp_path: Path) -> None:
    """Angles that are the same for all have no map of their own among the network's inputs."""
    run = run_here(
        tmp_path / "run", "corruption=radon", "corruption.angles=6", "em.guard=null",
        "prior={steps:2}",
    )  # fmt: skip
    channel = diffem.load(run, device="cpu").channel
    x = torch.zeros(4, *channel.shape)
    np.save(tmp_path / "y.npy", channel.draw(x, torch.Generator().manual_seed(0)).y.numpy())
    angles = "--channel=corruption.angles=[0,30,60,90,120,150]"
    said = score(run, "--input", tmp_path / "y.npy", angles, "--out", tmp_path / "out")
    assert said.startswith("error: corruption.angles=[0,30,60,90,120,150]: measurements of this")
    assert "enter the network as 2 channels" in said and "was trained on 3" in said
    assert not (tmp_path / "out").exists()


def test_candidates_of_the_same_numbers_are_named(
    blurred: Path, digits: Path, tmp_path: Path
) -> None:
    channels = [f"--channel=corruption.sigma={width}" for width in (1, "1.0", 1.5)]
    said = score(blurred, "--input", digits, *channels, "--n", 1, "--out", tmp_path / "out")
    assert "sigma=1.0 gives the numbers of a candidate before it" in said
    assert said.count("a candidate before it") == 1


@pytest.mark.parametrize(
    ("setting", "same"), [("corruption.noise.std=0.3", True), ("corruption.noise.std=0.4", False)]
)
def test_a_channel_that_changes_nothing_is_named(
    setting: str, same: bool, denoised: Path, digits: Path, tmp_path: Path
) -> None:
    out = ("--n", 1, "--out", tmp_path / "out")
    said = score(denoised, "--input", digits, f"--channel={setting}", *out)
    assert (f"--channel {setting} has no effect" in said) == same


def test_a_channel_that_changes_none_of_several_runs_is_named(
    denoised: Path, digits: Path, tmp_path: Path
) -> None:
    other = run_here(tmp_path / "other", "prior={steps:2}", "seed=1", "corruption.noise.std=0.4")
    out = ("--n", 1, "--out", tmp_path / "out")
    for runs, same in [((denoised, other), False), ((other, denoised), False), ((other,), True)]:
        said = score(*runs, "--input", digits, "--channel=corruption.noise.std=0.4", *out)
        assert ("has no effect" in said) == same
        shutil.rmtree(tmp_path / "out")
    other = run_here(tmp_path / "third", "prior={steps:2}", "seed=1")
    said = score(denoised, other, "--input", digits, "--channel=corruption.noise.std=0.3", *out)
    assert "--channel corruption.noise.std=0.3 has no effect: each run has it" in said


def test_recorded_masks_are_not_changed_by_a_channel(tmp_path: Path) -> None:
    y = np.random.default_rng(0).uniform(0, 1, (60, 1, 8, 8)).astype(np.float32)
    y[:, :, ::3] = np.nan
    np.save(tmp_path / "y.npy", y)
    run = run_here(
        tmp_path / "run", "dataset=measurements", f"dataset.path={tmp_path / 'y.npy'}",
        "corruption=mask", "em.guard=null", "prior={steps:2}",
    )  # fmt: skip
    out = ("--n", 1, "--out", tmp_path / "out")
    said = score(run, "--input", tmp_path / "y.npy", "--channel=corruption.rho=0.9", *out)
    assert "--channel corruption.rho=0.9 has no effect" in said


def test_numbers_that_are_not_finite_are_refused(
    denoised: Path, digits: Path, tmp_path: Path
) -> None:
    y = np.load(digits)[:5]
    y[2] = 1e30  # which squares to infinity
    np.save(tmp_path / "y.npy", y)
    said = score(denoised, "--input", tmp_path / "y.npy", "--n", 1, "--out", tmp_path / "out")
    assert "row 2 of y is not finite: its values are too far from those" in said
    assert not (tmp_path / "out").exists()


def test_what_holds_no_measured_entry_is_not_judged(digits: Path, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", "corruption=mask", "em.guard=null", "prior={steps:2}")
    y = np.load(digits)[:12]
    y[::3] = np.nan
    np.save(tmp_path / "y.npy", y)
    given = (run, "--input", tmp_path / "y.npy", "--n", 2)
    said = score(*given, "--out", tmp_path / "one")
    assert "nothing was measured in 4 of 12 measurements" in said
    found = rows(tmp_path / "one")
    known = [float(row["surprise per entry"]) for i, row in enumerate(found) if i % 3]
    assert f"to {max(known):.3f} (" in said
    for row in found[::3]:
        assert (row["entries"], row["log p(y) run"], row["surprise per entry"]) == (
            "0",
            "0",
            "nan",
        )
    levels = (f"--channel=corruption.noise.std={std}" for std in (0.05, 0.1))
    said = score(*given, *levels, "--out", tmp_path / "two")
    counts = re.findall(r"the most probable one for (\d+) of 8", said)
    assert sum(map(int, counts)) == 8 and len(counts) == 2
    np.savez(tmp_path / "none.npz", y=np.zeros_like(y), operator=np.zeros_like(y))
    said = score(run, "--input", tmp_path / "none.npz", "--n", 1, "--out", tmp_path / "none")
    assert "nothing was measured in any of the 12 measurements of none.npz" in said
    assert not (tmp_path / "none").exists()


def test_runs_of_one_name_are_told_apart(
    blurred: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "sweep" / blurred.name
    shutil.copytree(blurred, other)
    channel = "--channel=corruption.sigma=1"
    score(blurred, other, "--input", digits, channel, "--n", 1, "--out", tmp_path / "out")
    names = [f"log p(y) {run} corruption.sigma=1" for run in (blurred, other)]
    assert list(rows(tmp_path / "out")[0])[2:4] == names
    monkeypatch.chdir(other.rename(tmp_path / "here"))
    score(blurred, ".", "--input", digits, channel, "--n", 1, "--out", tmp_path / "out2")
    names = [f"log p(y) {name} corruption.sigma=1" for name in (blurred.name, "here")]
    assert list(rows(tmp_path / "out2")[0])[2:4] == names


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (["prior=null"], "has no prior"),
        (["prior={steps:2}", "method=em_mmps", "sampler=ddpm"], "without a denoiser of x given y"),
        (["prior={steps:2}", "corruption=quantisation"], "a linear channel with Gaussian noise"),
    ],
)
def test_runs_that_cannot_tell_are_refused(
    choices: list[str], sentence: str, digits: Path, tmp_path: Path
) -> None:
    run = run_here(tmp_path / "run", *choices)
    assert sentence in score(run, "--input", digits, "--out", tmp_path / "out")
