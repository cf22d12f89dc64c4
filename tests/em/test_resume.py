"""Law 4: a killed run, resumed, is an uninterrupted run."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import ROUNDS, SmallRun

from diffem.runtime.errors import UserError
from diffem.storage.checkpoint import load_checkpoint, previous, resumable


class Killed(BaseException):
    """Ends a run where a kill would."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return SmallRun(tmp_path_factory.mktemp("whole") / "r").fit()


def dying(run: SmallRun, owner: object, method: str, call: int) -> SmallRun:
    """Makes a run die at the n-th call of a method, before (call > 0) or after (< 0) it."""
    original: Callable[..., object] = getattr(owner, method)
    calls = 0

    @functools.wraps(original)  # Lightning reads the signature
    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        result = original(*args, **kwargs)
        if calls == -call:
            raise Killed
        return result

    setattr(owner, method, counted)
    return run


# 4 chunks a round; 4 steps a round in epochs of 3 and 1; a save after each epoch and each E-step.
POINTS = {
    "init, second chunk": ("store", "write", 2),
    "init, commit": ("store", "commit", 1),
    "after the init's commit": ("store", "commit", -1),
    "first step": ("module", "training_step", 1),
    "second epoch": ("module", "training_step", 4),
    "E-step 1, first chunk": ("store", "write", 5),
    "E-step 1, third chunk": ("store", "write", 7),
    "E-step 1, commit": ("store", "commit", 2),
    "after E-step 1's commit": ("store", "commit", -2),
    "second round, a step": ("module", "training_step", 6),
    "last E-step": ("store", "write", 10),
    "after the last commit": ("store", "commit", -3),
}


@pytest.mark.parametrize("point", POINTS)
def test_law_4_a_killed_run_is_an_uninterrupted_run(
    point: str, whole: SmallRun, tmp_path: Path
) -> None:
    owner, method, call = POINTS[point]
    first = SmallRun(tmp_path / "r")
    with pytest.raises(Killed):
        dying(first, getattr(first, owner), method, call).fit()
    resumed = SmallRun(tmp_path / "r").fit()
    assert resumed.module.weights_hash() == whole.module.weights_hash()
    for k in range(ROUNDS + 1):
        assert resumed.store.digest(k) == whole.store.digest(k)
    # The budgets go on counting: what was lost is not counted, at most a round's.
    spent, before = resumed.rounds[-1].costs, whole.rounds[-1].costs
    lost, most = whole.nfe(-1) - resumed.nfe(-1), whole.nfe(1)
    assert 0 <= lost <= most
    assert spent["optimizer_steps"] == before["optimizer_steps"]
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name]


def online(path: Path, nfe: float | None = None) -> SmallRun:
    """Returns a run whose optimiser goes on from round to round."""
    run = SmallRun(path)
    run.settings = replace(run.settings, restart=False, first_steps=7, nfe=nfe)
    return run


@pytest.fixture(scope="module")
def whole_online(tmp_path_factory: pytest.TempPathFactory) -> dict[float | None, SmallRun]:
    folder = tmp_path_factory.mktemp("online")
    return {nfe: online(folder / f"{nfe}", nfe).fit() for nfe in (None, 4000.0)}


IN_FIRST_M_STEP, IN_SECOND_M_STEP = ("module", "training_step", 4), ("module", "training_step", 9)


@pytest.mark.parametrize(
    ("point", "nfe"),
    [
        (IN_FIRST_M_STEP, None),
        (("store", "write", 5), None),
        (("store", "commit", -2), None),
        (IN_SECOND_M_STEP, None),
        (("store", "commit", -3), None),
        # A killed E-step's NFE is not counted, and the rate follows the NFE here: M-steps only.
        (IN_FIRST_M_STEP, 4000.0),
        (IN_SECOND_M_STEP, 4000.0),
    ],
)
def test_a_killed_run_whose_optimiser_goes_on_is_an_uninterrupted_one(
    point: tuple[str, str, int],
    nfe: float | None,
    whole_online: dict[float | None, SmallRun],
    tmp_path: Path,
) -> None:
    first, (owner, method, call) = online(tmp_path / "r", nfe), point
    with pytest.raises(Killed):
        dying(first, getattr(first, owner), method, call).fit()
    resumed, whole = online(tmp_path / "r", nfe).fit(), whole_online[nfe]
    assert resumed.module.weights_hash() == whole.module.weights_hash()
    assert resumed.data.state.progress == whole.data.state.progress
    assert resumed.data.state.optimizer_steps == 7 + 4 * (ROUNDS - 1)


def test_an_optimiser_that_goes_on_keeps_its_moments(
    whole_online: dict[float | None, SmallRun],
) -> None:
    run = whole_online[None]
    (optimizer,) = run.module.trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {7 + 4 * (ROUNDS - 1)}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * run.module.m_step.schedule(1))


def test_the_rate_follows_the_budget_that_is_spent_most() -> None:
    run = SmallRun.settings_of(rounds=10)
    assert run.progress(1e9, 1e9) == 0
    both = replace(run, seconds=100.0, nfe=1000.0)
    assert both.progress(50.0, 200) == 0.5 and both.progress(10.0, 900) == 0.9
    assert both.progress(300.0, 0) == 1


@pytest.mark.parametrize("point", ["before pruning", "in pruning", "in the last pruning"])
def test_a_kill_in_pruning_leaves_no_old_round(
    point: str, whole: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 11, B10: `round_000` stayed."""

    def run(rounds: int = ROUNDS) -> SmallRun:
        small = SmallRun(tmp_path / "r", rounds=rounds)
        small.settings = replace(small.settings, keep_rounds=2)
        return small

    if point == "in the last pruning":
        with monkeypatch.context() as patch, pytest.raises(Killed):
            remove = shutil.rmtree

            def killed(path: Path, *rest: object, **others: object) -> None:
                if Path(path).name == "round_000":
                    raise Killed
                remove(path, *rest, **others)  # type: ignore[arg-type]

            patch.setattr(shutil, "rmtree", killed)
            run().fit()
        assert not (tmp_path / "r" / "round_000" / "manifest.json").exists()
    else:
        first = run()
        call = {"before pruning": 3, "in pruning": -3}[point]
        with pytest.raises(Killed):
            dying(first, first.store, "prune", call).fit()
    resumed = run().fit()
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["round_001", "round_002"]
    assert resumed.module.weights_hash() == whole.module.weights_hash()


def test_chunks_that_were_written_are_kept(tmp_path: Path) -> None:
    first = SmallRun(tmp_path / "r")
    with pytest.raises(Killed):
        dying(first, first.store, "write", 7).fit()
    chunk = tmp_path / "r" / "round_001" / "chunk_00001.npy"
    before = chunk.stat().st_mtime_ns
    SmallRun(tmp_path / "r").fit()
    assert chunk.stat().st_mtime_ns == before


def test_a_finished_run_has_nothing_left_to_do(whole: SmallRun) -> None:
    again = SmallRun(whole.store.path).fit()
    assert again.rounds == []
    assert again.module.weights_hash() == whole.module.weights_hash()


def test_more_rounds_go_on_from_where_it_was(whole: SmallRun, tmp_path: Path) -> None:
    SmallRun(tmp_path / "r", rounds=1).fit()
    longer = SmallRun(tmp_path / "r").fit()
    assert [r.number for r in longer.rounds] == [2]
    assert longer.module.weights_hash() == whole.module.weights_hash()


@pytest.mark.parametrize("budget", [{"nfe": 1.0}, {"seconds": 1e-6}])
def test_a_run_that_is_over_its_budget_trains_no_further(
    budget: dict[str, float], tmp_path: Path
) -> None:
    """As after a kill while the prior is fitted, or in an E-step that was the last."""
    first = SmallRun(tmp_path / "r", rounds=5)
    first.settings = replace(first.settings, **budget)
    assert [r.number for r in first.fit().rounds] == [0, 1]
    again = SmallRun(tmp_path / "r", rounds=5)
    again.settings = replace(again.settings, **budget)
    assert again.fit().rounds == []
    assert again.module.weights_hash() == first.module.weights_hash()

    killed = SmallRun(tmp_path / "k", rounds=5)
    killed.settings = replace(killed.settings, **budget)
    with pytest.raises(Killed):
        dying(killed, killed.store, "commit", 2).fit()
    resumed = SmallRun(tmp_path / "k", rounds=5)
    resumed.settings = replace(resumed.settings, **budget)
    assert [r.number for r in resumed.fit().rounds] == [1]


@pytest.mark.parametrize("keep_rounds", [None, 2])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    keep_rounds: int | None, whole: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one before is from before the last E-step, and needs the round before it."""
    run = SmallRun(tmp_path / "r")
    run.settings = replace(run.settings, keep_rounds=keep_rounds)
    run.fit()
    assert run.store.committed(0) == (keep_rounds is None)
    last = tmp_path / "r.checkpoints" / "last.ckpt"
    assert load_checkpoint(last)["global_step"] == 8 and previous(last).is_file()
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    resumed = SmallRun(tmp_path / "r").fit()
    assert f"{last} is damaged" in "".join(capsys.readouterr().err.split("\n"))
    assert resumed.module.weights_hash() == run.module.weights_hash()


def damage(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Where the run was killed, what is damaged then, what goes on from where.
DAMAGED = {
    "M-step 1": (("module", "training_step", 4), ["round_000/chunk_00002.npy"], "from the init"),
    "M-step 2": (("module", "training_step", 8), ["round_001/chunk_00001.npy"], "round 1 is"),
    "M-step 2, the commit": (
        ("module", "training_step", 8),
        ["round_001/manifest.json"],
        "round 1 is",
    ),
    "E-step 2": (("store", "write", 10), ["round_001/chunk_00000.npy"], "round 1 is"),
    "E-step 2, its own": (("store", "write", 12), ["round_002/chunk_00001.npy"], "drawn again"),
    "E-step 2, what opens it": (("store", "write", 12), ["round_002/weights.json"], None),
    "at the end": (("store", "commit", -3), ["round_002/chunk_00003.npy"], "drawn again"),
    "E-step 1, no round left": (
        ("store", "write", 7),
        ["round_000/chunk_00000.npy", "../r.checkpoints/last.ckpt"],
        "from the init",
    ),
}


@pytest.mark.parametrize("point", DAMAGED)
def test_what_is_damaged_after_a_kill_is_made_again(
    point: str, whole: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (owner, method, call), files, told = DAMAGED[point]
    first = SmallRun(tmp_path / "r")
    with pytest.raises(Killed):
        dying(first, getattr(first, owner), method, call).fit()
    for file in files:
        damage(tmp_path / "r" / file)
    capsys.readouterr()
    resumed = SmallRun(tmp_path / "r").fit()
    warnings = [w for w in capsys.readouterr().err.splitlines() if w.startswith("warning: ")]
    assert any(told in line for line in warnings) if told else not warnings, warnings
    assert any("from the init" in line for line in warnings) == (told == "from the init")
    assert resumed.module.weights_hash() == whole.module.weights_hash()
    for k in range(ROUNDS + 1):
        assert resumed.store.digest(k) == whole.store.digest(k)
        assert resumed.store.damaged(k) is None


def test_where_nothing_is_whole_it_is_said(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "r").fit()
    for file in run.store.path.glob("round_*/chunk_00000.npy"):
        damage(file)
    with pytest.raises(UserError, match="no checkpoint is left that is intact"):
        SmallRun(tmp_path / "r").fit()


def test_a_damaged_sum_takes_no_checkpoint_with_it(whole: SmallRun, tmp_path: Path) -> None:
    folder = whole.store.path.with_suffix(".checkpoints")
    for sums in ("SHA256SUMS", "SHA256SUMS.copy"):
        copy = Path(shutil.copytree(folder, tmp_path / sums))
        (copy / sums).write_text("")
        digest = whole.store.intact_digest
        assert resumable(copy / "last.ckpt", digest) == copy / "last.ckpt"
