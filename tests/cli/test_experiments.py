"""Every experiment takes two optimiser steps and one E-step chunk of its own size, end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import ROOT, train
from PIL import Image

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def image_folder(path: Path, sides: tuple[int, int]) -> Path:
    """Makes random images in the layout of Hugging Face's image folders: stands in for the hub."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (path / split).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (*sides, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / split / f"{i}.png")
    return path


def data_of(experiment: str, tmp_path: Path) -> list[str]:
    """Returns the overrides that leave two training images of the experiment's own kind."""
    experiment = experiment.removeprefix("paper_")
    if experiment.startswith(("cifar10", "celeba")):
        sides = (32, 32) if experiment.startswith("cifar10") else (218, 178)
        folder = image_folder(tmp_path / "images", sides)
        return [f"dataset.path={folder}", "dataset.column=image", "dataset.splits=[train,test]"]
    if experiment == "fashion_mnist" or experiment.startswith("fashion"):
        if not Path("/usr/share/datasets/fashion-mnist").exists():
            pytest.skip("needs Debian's package dataset-fashion-mnist")
        return ["dataset.train=2", "dataset.heldout=2"]
    return ["dataset.train=2"] + (["dataset.heldout=2"] if experiment == "manifold" else [])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_takes_two_steps_and_one_chunk(experiment: str, tmp_path: Path) -> None:
    done = train(
        f"experiment={experiment}",
        *data_of(experiment, tmp_path),
        f"run_dir={tmp_path / 'run'}",
        "em.rounds=1",
        "em.epochs_per_round=null",
        "em.steps_per_round=2",
        "em.first_steps=null",
        "em.batch_size=2",
        "em.chunk_size=2",
        "init.iterations=1",
        "sampler.steps=2",  # of up to 4096, each of which is alike
        "metric.samples=2",
        "metric.subset=2",
        "metric.heldout=2",
        "prior=null",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["round"] for row in summary["rounds"]] == [0, 1]
    shape = np.load(tmp_path / "run/reconstructions/round_001/chunk_00000.npy").shape
    assert shape[0] == 2
