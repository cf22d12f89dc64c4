"""Runs that continue others: what they keep, what they measure, and what is refused."""

import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from command import ROOT, SHORT, train, weights
from in_process import run_here
from safetensors.torch import load_file

from diffem.cli import erase
from diffem.cli.memory import MEMORY
from diffem.runtime.errors import UserError
from diffem.storage.checkpoint import previous

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
PRIOR = "prior={steps:2}"
PSNR = "metric.metrics={psnr:{_target_:diffem.metric.PSNR}}"
KEPT = Path("checkpoints") / MEMORY


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return run_here(folder / "a", "dataset.only=[0,1,2,3,4]", PRIOR, PSNR, "dataset.train=100")


def continued(run_dir: Path, source: Path, memory: str, *overrides: str) -> Path:
    size = () if memory == "none" else ("memory.size=12",)
    return run_here(
        run_dir, "init=checkpoint", f"init.path={source}", f"memory={memory}", *size,
        f"memory.path={source}", "dataset.only=[5,6,7,8,9]", PSNR, *overrides,
    )  # fmt: skip


def final(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "summary.json").read_text())["final"]


@pytest.mark.parametrize("memory", ["replay", "generative"])
def test_a_run_is_resumed_when_the_earlier_one_is_gone(
    memory: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the init, with what it has kept: to the weights of an uninterrupted run."""
    old = Path(shutil.copytree(source, tmp_path / "old"))
    whole = continued(tmp_path / "whole", old, memory, "em.rounds=2")
    resumed = continued(tmp_path / "resumed", old, memory)
    assert weights(whole) != weights(continued(tmp_path / "none", old, "none", "em.rounds=2"))
    shutil.rmtree(old)
    for name in ("last.ckpt", "last.e_step.ckpt"):
        for file in (resumed / "checkpoints" / name, previous(resumed / "checkpoints" / name)):
            file.unlink(missing_ok=True)
    shutil.rmtree(resumed / "reconstructions" / "round_000")
    continued(resumed, old, memory, "em.rounds=2")
    assert weights(resumed) == weights(whole)
    assert (resumed / KEPT).read_bytes() == (whole / KEPT).read_bytes()
    assert "is not measured" in " ".join(capsys.readouterr().err.split())


def test_measurements_are_erased_when_the_earlier_run_is_gone(
    source: Path, tmp_path: Path
) -> None:
    """From what the run has kept of it, before its weights are unlearnt in vain."""
    old = Path(shutil.copytree(source, tmp_path / "old"))
    run_dir = continued(tmp_path / "run", old, "replay")
    shutil.rmtree(old)
    (tmp_path / "rows.txt").write_text("3\n")
    new = tmp_path / "new"
    erase.main(
        [str(run_dir), "--rows", str(tmp_path / "rows.txt"), "--out", str(new), "--steps", "1"]
    )
    assert (new / KEPT).read_bytes() == (run_dir / KEPT).read_bytes()


def test_a_copy_that_is_damaged_is_made_again(source: Path, tmp_path: Path) -> None:
    run_dir = continued(tmp_path / "run", source, "replay")
    before = (run_dir / KEPT).read_bytes()
    data = bytearray(before)
    data[-1] ^= 1
    (run_dir / KEPT).write_bytes(data)
    continued(run_dir, source, "replay", "em.rounds=2")
    assert (run_dir / KEPT).read_bytes() == before


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("lose", [damage, Path.unlink])
@pytest.mark.parametrize("name", [MEMORY, "init.ckpt"])
def test_a_lost_copy_of_a_run_that_is_gone_has_a_way_out(
    name: str, lose: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    """The settings of memory and init are a run's own: resumed with others it was refused."""
    old = Path(shutil.copytree(source, tmp_path / "old"))
    run_dir = continued(tmp_path / "run", old, "replay")
    shutil.rmtree(old)
    file = run_dir / "checkpoints" / name
    lose(file)
    advice = f"in a new run_dir with init=checkpoint init.path={run_dir} memory=none"
    with pytest.raises(UserError, match=re.escape(f"{file} is missing or damaged")) as error:
        continued(run_dir, old, "replay", "em.rounds=2")
    assert str(error.value).endswith(advice)
    run_here(tmp_path / "next", *advice.split()[-3:])  # which works
    (tmp_path / "rows.txt").write_text("3\n")
    out = ["--rows", str(tmp_path / "rows.txt"), "--out", str(tmp_path / "new")]
    text = io.StringIO()
    with pytest.raises(SystemExit), redirect_stderr(text):
        erase.main([str(run_dir), *out, "--steps", "1"])
    said = text.getvalue()
    assert f"{file} is missing or damaged" in said and said.count("\n") == 1  # before any work
    assert "train again without the rows, from another init and with memory=none" in said


def test_what_is_kept_is_of_the_earlier_run(source: Path, tmp_path: Path) -> None:
    """12 of its last reconstructions; then 12 of both runs' in proportion."""
    first = continued(tmp_path / "b", source, "replay")
    kept = load_file(first / KEPT)
    rows = np.concatenate(
        [np.load(f) for f in sorted((source / "reconstructions/round_001").glob("*.npy"))]
    )
    known = {row.tobytes() for row in rows}
    assert len(kept["images"]) == 12 and int(kept["stand_for"]) == len(rows)
    assert all(row.numpy().tobytes() in known for row in kept["images"])
    second = load_file(continued(tmp_path / "c", first, "replay") / KEPT)
    of_first = sum(row.numpy().tobytes() in known for row in second["images"])
    count = int(second["stand_for"]) - len(rows)  # of the second run's measurements
    assert of_first == round(12 * len(rows) / (len(rows) + count))
    drawn = load_file(continued(tmp_path / "d", source, "generative") / KEPT)["images"]
    assert len(drawn) == 12 and not any(row.numpy().tobytes() in known for row in drawn)


def test_replay_follows_generative_replay(source: Path, tmp_path: Path) -> None:
    """Samples of a prior stand for all the measurements that it was learned from."""
    first = continued(tmp_path / "b", source, "generative", PRIOR)
    second = load_file(continued(tmp_path / "c", first, "replay") / KEPT)
    seen = sum(
        len(np.load(chunk))
        for run in (source, first)
        for chunk in (run / "reconstructions/round_001").glob("*.npy")
    )
    assert int(second["stand_for"]) == seen and len(second["images"]) == 12


@pytest.mark.parametrize("lose", [damage, Path.unlink])
def test_what_an_earlier_run_kept_is_not_left_out_in_silence(
    lose: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    first = continued(tmp_path / "b", source, "replay")
    lose(first / KEPT)
    with pytest.raises(UserError, match=r"safetensors is missing or damaged, which has what"):
        continued(tmp_path / "c", first, "replay")
    assert not (tmp_path / "c" / ".hydra").exists()
    continued(tmp_path / "c", first, "none")  # what the sentence says


def test_weights_of_another_network_are_refused_before_the_run_is_opened(
    source: Path, tmp_path: Path
) -> None:
    """The settings were saved before, and others refused in the same run_dir."""
    with pytest.raises(UserError, match="is of another network"):
        continued(tmp_path / "b", source, "none", "network.channels=[32]")
    continued(tmp_path / "b", source, "none")


def test_what_is_forgotten_is_measured_over_all_earlier_runs(source: Path, tmp_path: Path) -> None:
    first = continued(tmp_path / "b", source, "none")
    last = continued(tmp_path / "c", first, "none")
    summary, scores = json.loads((last / "summary.json").read_text()), final(last)
    assert [row["run"] for row in summary["earlier"]] == [str(first), str(source)]
    before = [row["before"]["psnr_mean"] for row in summary["earlier"]]
    after = [row["after"]["psnr_mean"] for row in summary["earlier"]]
    assert before == [final(first)["psnr_mean"], final(source)["psnr_mean"]]
    assert scores["old_psnr_mean"] == pytest.approx(sum(after) / 2)
    assert scores["forgetting_db"] == pytest.approx((sum(before) - sum(after)) / 2)


def test_an_earlier_run_s_damaged_summary_ends_no_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is forgotten is measured at the end, when all has been trained."""
    old = Path(shutil.copytree(source, tmp_path / "old"))
    summary = json.loads((old / "summary.json").read_text())
    (old / "summary.json").write_text(json.dumps(summary | {"samples": 0}))
    run_dir = continued(tmp_path / "run", old, "none")
    assert "earlier" not in json.loads((run_dir / "summary.json").read_text())
    said = " ".join(capsys.readouterr().err.split())
    assert "is not measured: metric.samples must be a whole number of at least 2, got 0" in said


def test_a_run_that_has_learned_nothing_has_forgotten_nothing(
    source: Path, tmp_path: Path
) -> None:
    """Its weights are the earlier run's, and its samples are drawn alike: the same scores."""
    run_dir = continued(
        tmp_path / "same", source, "none", "m_step.optimizer.lr=1e-18", "em.steps_per_round=1"
    )
    assert final(run_dir)["forgetting_db"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("memory=replay", "memory.path={a}"), "add init=checkpoint init.path="),
        (("memory=replay", "memory.path={a}/no", *("init=checkpoint", "init.path={a}")), "holds"),
        (("memory=replay", *("init=checkpoint", "init.path={a}")), "memory.path"),
        (
            ("memory=generative", "memory.path={b}", *("init=checkpoint", "init.path={a}")),
            "memory=generative needs a prior",
        ),
        (("balance=dual",), r"balance=dual needs groups of measurements: give dataset\.groups"),
        (
            (
                *("memory=replay", "memory.path={a}", "init=checkpoint", "init.path={a}"),
                *("balance=oversample", "dataset.groups=[[4]]"),
            ),
            "memory puts images of no group",
        ),
        (("method=ambient", "corruption=mask", "balance=dual"), "balance has no effect on"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    overrides: tuple[str, ...], sentence: str, source: Path, tmp_path: Path
) -> None:
    without = Path(shutil.copytree(source, tmp_path / "b"))
    (without / "checkpoints" / "prior.safetensors").unlink()
    given = [o.format(a=source, b=without) for o in overrides]
    with pytest.raises(Exception, match=sentence) as error:  # Hydra's own for a missing value
        run_here(tmp_path / "run", *given)
    assert isinstance(error.value, UserError) or "memory.path" in str(error.value)
    assert not list((tmp_path / "run").iterdir())


def test_groups_are_scored(tmp_path: Path) -> None:
    run_dir = run_here(
        tmp_path / "run", "dataset.groups=[[4,5,7]]", "dataset.thin={4:0.1,5:0.1,7:0.1}",
        "balance=dual", PSNR, "metric.heldout=40",
    )  # fmt: skip
    scores = json.loads((run_dir / "summary.json").read_text())["final"]
    both = sorted(scores["groups"].values())
    assert [scores["worst_group_psnr_mean"], scores["other_groups_psnr_mean"]] == both


@pytest.mark.kill
@pytest.mark.parametrize("choice", ["replay", "dual"])
def test_law_4_two_processes_of_which_the_first_is_killed(choice: str, tmp_path: Path) -> None:
    """At the commit of round 1, by its own signal; resumed, they end as without the kill."""
    from kill_at import AIM, hook

    short = [word for word in SHORT if not word.startswith("init.")]
    two = ("trainer.accelerator=cpu", "trainer.devices=2", "prior=null")
    old = tmp_path / "old"
    assert train(*SHORT, f"run_dir={old}", "prior=null", OMP_NUM_THREADS="1").returncode == 0
    given = ["init=checkpoint", f"init.path={old}"]
    if choice == "dual":
        given += ["balance=dual", "dataset.groups=[[4,5,7]]"]
    else:
        given += [f"memory={choice}", f"memory.path={old}", "memory.size=20"]

    def run(run_dir: Path, **environment: str) -> int:
        done = train(
            *short, *two, *given, f"run_dir={run_dir}", OMP_NUM_THREADS="1", **environment
        )
        return done.returncode

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole) == 0
    aim = {"stage": "commit", "skip": 2, "signal": 9, "run_dir": str(killed), "delay": 0.0}
    path = f"{hook(tmp_path / 'hook')}:{ROOT}"
    assert run(killed, PYTHONPATH=path, **{AIM: json.dumps(aim)}) != 0
    assert not (killed / "summary.json").exists()
    assert run(killed) == 0
    assert weights(killed) == weights(whole)
