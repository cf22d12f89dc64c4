"""A point spread function in a file, and clean images in one: runs are bound to what it holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import run_here

import diffem
from diffem.cli.compose import check_arguments
from diffem.cli.evaluate import evaluate_run
from diffem.runtime.errors import UserError


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "psf é.npy"
    np.save(path, np.ones((3, 3)))
    return path


def choices(kernel: Path) -> list[str]:
    return ["corruption=point_spread", f"corruption.kernel='{kernel}'"]


def test_a_kernel_may_be_the_path_of_a_file(kernel: Path) -> None:
    check_arguments(choices(kernel))
    with pytest.raises(UserError, match=r"corruption\.kernel must be a list, got True"):
        check_arguments(["corruption=point_spread", "corruption.kernel=true"])


def test_a_finished_run_does_not_need_its_kernel_file(kernel: Path, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", *choices(kernel))
    kernel.unlink()
    evaluate_run(run, [])
    final, again = (
        json.loads((run / name).read_text())["final"]
        for name in ("summary.json", "evaluation_001.json")
    )
    assert again["psnr"] == final["psnr"]
    y = np.zeros((1, 8, 8), dtype=np.float32)
    assert diffem.load(run, device="cpu").posterior.sample(y, n=1).isfinite().all()


def test_a_run_is_not_resumed_with_another_kernel_under_the_same_name(
    kernel: Path, tmp_path: Path
) -> None:
    run = run_here(tmp_path / "run", *choices(kernel))
    np.save(kernel, np.eye(3))
    with pytest.raises(UserError, match=r"a file of m_step\.clean or corruption\.kernel holds"):
        run_here(run, *choices(kernel), "em.rounds=2", "resume=auto")


def test_a_run_is_not_resumed_with_other_clean_images_under_the_same_name(tmp_path: Path) -> None:
    np.save(tmp_path / "clean.npy", np.zeros((4, 8, 8)))
    clean = f"{{_target_: diffem.em.CleanShare, share: 0.5, path: '{tmp_path / 'clean.npy'}'}}"
    given = ["corruption=blur", f"m_step.clean={clean}"]
    run = run_here(tmp_path / "run", *given)
    np.save(tmp_path / "clean.npy", np.ones((4, 8, 8)))
    with pytest.raises(UserError, match=r"a file of m_step\.clean or corruption\.kernel holds"):
        run_here(run, *given, "em.rounds=2", "resume=auto")
