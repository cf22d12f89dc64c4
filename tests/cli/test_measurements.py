"""`dataset=measurements`: a run on measurements of one's own, without clean images."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command import SHORT, train
from in_process import run_here
from PIL import Image

import diffem
from diffem.cli.compose import check_channel_given, compose_run
from diffem.corruption import Fourier, Radon
from diffem.data.held import open_measurements
from diffem.runtime.errors import UserError

SMALL = [o for o in SHORT if not o.startswith("dataset.")]


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A folder of noisy 16-bit TIFF images."""
    folder = tmp_path / "crops (é)"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        ramp = np.linspace(2000, 40000, 8) * rng.uniform(0.5, 1) + rng.normal(0, 1500, (8, 8))
        Image.fromarray(ramp.clip(0).astype(np.uint16)).save(folder / f"{i:02d}.tif")
    return folder


def test_a_folder_of_tiff_images(crops: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    own = [
        "dataset=measurements", f"dataset.path={crops}", "corruption=denoising",
        "corruption.noise.std=1500", f"run_dir={run_dir}",
    ]  # fmt: skip
    done = train(*SMALL, *own)
    assert done.returncode == 0, done.stderr
    assert "estimated from the measurements" in done.stderr
    final = json.loads((run_dir / "summary.json").read_text())["final"]
    assert {"residual_chi2", "posterior_std", "measurement_energy_distance"} <= final.keys()
    truth = [k for k in final if k.endswith("_truth") or k in ("psnr", "ssim", "psnr_mean")]
    assert not truth and final["prior"].keys() == {"samples", "nearest", "nearest_heldout"}
    assert (run_dir / "figures" / "heldout.png").is_file()


def test_a_file_with_missing_pixels_and_the_truth(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = np.linspace(-1, 1, 64).reshape(8, 8) * rng.uniform(0.5, 1, (60, 1, 1))
    y = np.where(rng.random(truth.shape) < 0.4, np.nan, truth + rng.normal(0, 0.05, truth.shape))
    np.savez(tmp_path / "y.npz", y=y, truth=truth)
    done = train(
        *SMALL, "dataset=measurements", f"dataset.path={tmp_path / 'y.npz'}",
        "corruption=mask", "corruption.noise.std=0.05", "dataset.range=[-1,1]", "prior=null",
        f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert {"psnr", "ssim", "residual_chi2", "diversity_truth"} <= final.keys()


def test_projections_of_which_some_were_not_taken(tmp_path: Path) -> None:
    operator = Radon((1, 8, 8), angles=3)
    angles = operator.draw(24, torch.Generator().manual_seed(0))
    angles[::2, 2] = np.nan
    x = torch.rand(24, 1, 8, 8) * 2 - 1
    y = operator.apply(x, angles).numpy()
    given = {"y": y + 0.1 * np.random.default_rng(0).standard_normal(y.shape)}
    given["y"][::4, :, 2] = np.nan
    given["operator"] = angles.numpy()
    np.savez(tmp_path / "y.npz", allow_pickle=False, **given)
    run = run_here(
        tmp_path / "run",
        *("dataset=measurements", f"dataset.path={tmp_path / 'y.npz'}", "dataset.range=[-1,1]"),
        *("dataset.shape=[1,8,8]", "corruption=radon", "corruption.angles=3"),
        *("corruption.noise.std=0.1", "metric.heldout=2"),
    )
    final = json.loads((run / "summary.json").read_text())["final"]
    assert final["residual_chi2"] > 0
    result = diffem.load(run, device="cpu")
    x = result.posterior.sample(given["y"][:2], operator=given["operator"][:2], n=1)
    assert x.isfinite().all()


def test_k_space_of_which_single_points_were_measured(tmp_path: Path) -> None:
    operator, draws = Fourier((1, 8, 8), acceleration=1.0), torch.Generator().manual_seed(0)
    points = (torch.rand(24, 1, 8, 8, generator=draws) < 0.6).float()
    y = operator.apply(torch.rand(24, 1, 8, 8, generator=draws) * 2 - 1, points).numpy()
    np.savez(tmp_path / "y.npz", allow_pickle=False, y=y, operator=points[:, 0].numpy())
    run = run_here(
        tmp_path / "run",
        *("dataset=measurements", f"dataset.path={tmp_path / 'y.npz'}", "dataset.range=[-1,1]"),
        *("dataset.shape=[1,8,8]", "corruption=fourier", "corruption.acceleration=2"),
        *("corruption.noise.std=0.1", "metric.heldout=2"),
    )
    final = json.loads((run / "summary.json").read_text())["final"]
    assert final["residual_chi2"] > 0
    result = diffem.load(run, device="cpu")
    x = result.posterior.sample(y[:2], operator=points[:2, 0].numpy(), n=1)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], "corruption must be given with dataset=measurements"),
        (["corruption=denoising"], "corruption.noise.std must be given with dataset=measurements"),
        (["corruption=blur", "corruption.noise.std=9"], "corruption.sigma must be given with"),
        (
            ["corruption=saturation", "corruption.noise.std=9"],
            "a benchmark; it is on the scale on which dataset.range is",
        ),
        (
            ["corruption=mask", "corruption/noise=poisson"],
            "corruption.noise.photons must be given",
        ),
    ],
)
def test_the_channel_of_one_s_own_measurements_is_not_left_at_a_benchmark_s(
    crops: Path, tmp_path: Path, given: list[str], missing: str
) -> None:
    with pytest.raises(UserError, match=missing.replace(".", r"\.")):
        check_channel_given(
            compose_run(["dataset=measurements", f"dataset.path={crops}", *given], tmp_path)
        )


def test_a_path_that_does_not_exist_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist; give a folder of images"):
        open_measurements(tmp_path / "none")
    where = re.escape(f"none does not exist in {Path.cwd()}; give a folder of images")
    with pytest.raises(UserError, match=where):
        open_measurements(Path("none"))


def test_measurements_that_were_moved_are_found_by_a_link(crops: Path, tmp_path: Path) -> None:
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    own = [
        *SMALL, "dataset=measurements", "corruption=denoising", "corruption.noise.std=1500",
        "prior=null", f"run_dir={run_dir}",
    ]  # fmt: skip
    done = train(*own, f"dataset.path={crops}", "em.rounds=1")
    assert done.returncode == 0, done.stderr
    crops.rename(moved)
    done = train(*own, f"dataset.path={moved}", "em.rounds=2")
    assert done.returncode == 1
    assert "by a link at the old place to what was moved" in done.stderr
    crops.symlink_to(moved)
    done = train(f"resume={run_dir}", "em.rounds=2")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((run_dir / "summary.json").read_text())["rounds"]) == 3
