"""init=checkpoint: a run keeps the weights that it started from (issue 11, B 6)."""

import shutil
from pathlib import Path

import pytest
from command import weights
from in_process import run_here

from diffem.runtime.errors import UserError
from diffem.storage.checkpoint import previous

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return run_here(tmp_path / "source", "seed=3")


def started(run_dir: Path, source: Path, *overrides: str) -> Path:
    return run_here(run_dir, "init=checkpoint", f"init.path={source}", *overrides)


@pytest.mark.parametrize("then", ["gone", "trained further"])
def test_a_run_is_resumed_whatever_became_of_the_other_run(
    then: str, source: Path, tmp_path: Path
) -> None:
    """Also from the init, when its own checkpoints are lost."""
    whole = started(tmp_path / "whole", source, "em.rounds=2")
    resumed = started(tmp_path / "resumed", source)
    if then == "gone":
        shutil.rmtree(source)
    else:
        run_here(source, "seed=3", "em.rounds=2")
    for name in ("last.ckpt", "last.e_step.ckpt"):
        for file in (resumed / "checkpoints" / name, previous(resumed / "checkpoints" / name)):
            file.unlink(missing_ok=True)
    shutil.rmtree(resumed / "reconstructions" / "round_000")
    started(resumed, source, "em.rounds=2")
    assert weights(resumed) == weights(whole)


def test_a_copy_that_is_damaged_gives_way_to_the_other_run(source: Path, tmp_path: Path) -> None:
    run_dir = started(tmp_path / "run", source)
    kept = run_dir / "checkpoints" / "init.ckpt"
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    before = weights(run_dir)
    started(run_dir, source, "em.rounds=2")
    assert weights(run_dir)[:2] == before
    kept.write_bytes(data)
    shutil.rmtree(source)
    with pytest.raises(
        UserError, match=r"init\.ckpt is missing or damaged, and .*source of init\.path is gone"
    ) as error:
        started(run_dir, source, "em.rounds=3")
    assert "\n" not in str(error.value)
