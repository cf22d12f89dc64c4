"""Issue 11, B 5 and Show 5: a piece of another run is refused, or made again; never used.

Another run is of another seed and of other measurements. Eight pieces of it are put into a run of
one round, which is then resumed to two: round, chunk, manifest, checkpoint, configuration, data
file, record of the channel, summary.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_process import run_here

from diffem.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
LEARN = ("corruption.learn=[noise]", "blind.iterations=1", "blind.samples=8")
SUFFIXES = (".npy", ".sha256", ".ckpt", ".safetensors", ".json", ".jsonl", ".png")
CHUNK = "reconstructions/round_001/chunk_00000"


def measurements(folder: Path, seed: int) -> str:
    """Writes measurements of a seed; returns the override that names them."""
    y = np.random.default_rng(seed).normal(0, 0.5, (60, 8, 8)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{seed}.npz", y=y)
    return f"dataset.path={folder / f'{seed}.npz'}"


class Runs:
    """A run of one round, the same of two rounds, and another run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = measurements(folder, 0)
        self.settings = (
            "dataset=measurements", "dataset.range=[-1,1]", *LEARN,
        )  # fmt: skip
        self.own = self.run("own")
        self.other = self.run("other", "seed=1", measurements(folder, 1))
        self.two = self.run("two", "em.rounds=2")

    def run(self, name: str, *overrides: str) -> Path:
        return run_here(self.folder / name, *self.settings, self.data, *overrides)

    def swapped(self, name: str, *pieces: str) -> Path:
        """Returns a copy of the run with pieces of the other one."""
        copy = self.folder / name
        shutil.copytree(self.own, copy)
        for piece in pieces:
            source, target = self.other / piece, copy / piece
            if source.is_dir():
                shutil.rmtree(target)
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
        return copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def rounds(run_dir: Path) -> list[dict[str, object]]:
    """Returns what the manifests say of weights, chunks and the channel of each round."""
    files = sorted(run_dir.glob("reconstructions/round_*/manifest.json"))
    held = [json.loads(file.read_text()) for file in files]
    return [{key: m[key] for key in ("weights_sha256", "chunks", "channel")} for m in held]


def state(run_dir: Path) -> dict[str, bytes]:
    """Returns the results that a run holds; why a refused process ended is none."""
    files = (f for f in run_dir.rglob("*") if f.parent.name != ".hydra" and f.suffix in SUFFIXES)
    files = (f for f in files if f.name != "ended.json")
    held = {str(f.relative_to(run_dir)): f.read_bytes() for f in files}
    return {name.replace("summary.previous", "summary"): data for name, data in held.items()}


def test_without_a_swap_it_is_the_run_of_two_rounds(runs: Runs) -> None:
    resumed = runs.run(runs.swapped("as it is").name, "em.rounds=2")
    assert rounds(resumed) == rounds(runs.two)
    assert len(rounds(resumed)) == 3 and rounds(runs.other) != rounds(runs.own)


@pytest.mark.parametrize(
    ("name", "pieces", "sentence"),
    [
        ("round", ["reconstructions/round_001"], "round_001/manifest.json is of another run"),
        ("round 0", ["reconstructions/round_000"], "round_000/manifest.json is of another run"),
        (
            "manifest",
            ["reconstructions/round_001/manifest.json"],
            "round_001/manifest.json is of another run",
        ),
        ("checkpoint", ["checkpoints"], "last.ckpt is of another run"),
        ("configuration", [".hydra/config.yaml"], "holds a run of another config"),
        ("all of .hydra", [".hydra"], "holds a run of another config"),
        (
            "channel",
            ["reconstructions/round_001/channel.json"],
            "round_001/channel.json is of another run",
        ),
        ("binding", ["run.json"], "run.json is of another run"),
    ],
)
def test_a_piece_of_another_run_is_refused(
    name: str, pieces: list[str], sentence: str, runs: Runs
) -> None:
    copy = runs.swapped(name, *pieces)
    before = state(copy)
    with pytest.raises(UserError) as error:
        runs.run(name, "em.rounds=2")
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert state(copy) == before


def test_a_chunk_of_another_run_is_drawn_again(runs: Runs) -> None:
    runs.swapped("chunk", f"{CHUNK}.npy", f"{CHUNK}.sha256")
    assert rounds(runs.run("chunk", "em.rounds=2")) == rounds(runs.two)


@pytest.mark.parametrize(
    "change", [lambda y: y + 1, lambda y: y[:-1], lambda y: np.where(np.arange(60) == 7, 0, y.T).T]
)
def test_measurements_that_were_changed_are_refused(
    change: Callable[[np.ndarray], np.ndarray], runs: Runs, tmp_path: Path
) -> None:
    """Between a kill and the resume: all of them, their number, one of them."""
    file = Path(runs.data.partition("=")[2])
    held = file.read_bytes()
    run_dir = Path(shutil.copytree(runs.own, tmp_path / "run"))
    np.savez(file, y=change(np.load(file)["y"]))
    try:
        with pytest.raises(
            UserError, match=r"dataset: the measurements .* are not those"
        ) as error:
            run_here(run_dir, *runs.settings, runs.data, "em.rounds=2")
        assert "\n" not in str(error.value)
    finally:
        file.write_bytes(held)
    run_here(run_dir, *runs.settings, runs.data, "em.rounds=2")  # the advice works
    assert rounds(run_dir) == rounds(runs.two)


def test_a_summary_of_another_run_does_not_finish_this_one(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = runs.swapped("summary", "summary.json", "rounds.json")
    assert rounds(runs.run("summary", "resume=auto")) == rounds(runs.own)
    told = capsys.readouterr().err
    assert "summary.json is of another run; the run is evaluated again" in told
    assert "rounds.json is damaged or of another run" in told
    summaries = [json.loads((r / "summary.json").read_text()) for r in (copy, runs.own)]
    assert summaries[0]["final"] == summaries[1]["final"]
    assert [r["residual_chi2"] for r in summaries[0]["rounds"]] == [
        r["residual_chi2"] for r in summaries[1]["rounds"]
    ]


def test_without_its_checkpoints_a_run_starts_from_the_init_and_keeps_its_rounds(
    runs: Runs,
) -> None:
    """What the sentence about foreign checkpoints advises."""
    copy = runs.swapped("no checkpoints")
    shutil.rmtree(copy / "checkpoints")
    chunk = copy / f"{CHUNK}.npy"
    before = chunk.stat().st_mtime_ns
    assert rounds(runs.run("no checkpoints", "em.rounds=2")) == rounds(runs.two)
    assert chunk.stat().st_mtime_ns == before
