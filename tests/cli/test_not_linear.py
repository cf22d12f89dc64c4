"""Channels that are not linear: a run trains, is read by pages, and samples."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_here

import diffem
from diffem.cli.evaluate import evaluate_run
from diffem.report.record import read_record
from diffem.report.verdict import verdict

CORRUPTIONS = {
    "jpeg": ["corruption=jpeg"],
    "rician": ["corruption=rician"],
    "saturation": ["corruption=saturation"],
    "chain": ["corruption=chain"],
    "phase_retrieval": ["corruption=phase_retrieval", "corruption.masks=2"],
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_run_is_finished_for_pages_and_its_weights_sample(name: str, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", *CORRUPTIONS[name], "metric.metrics={}")
    record = read_record(run)
    assert record.final is not None and record.final["psnr"] > 0
    assert verdict(record.summary)
    posterior = diffem.load(run, device="cpu").posterior
    x = torch.zeros(2, 1, 8, 8)
    y = posterior.channel.draw(x, torch.Generator().manual_seed(0))
    operator = y.operator.numpy() if y.operator.numel() else None
    drawn = posterior.sample(y.y.numpy(), operator=operator, n=3)
    assert drawn.shape == (3, 2, 1, 8, 8) and abs(drawn).max() < 10


def test_what_can_be_measured_without_clean_images_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "y.npy", np.random.default_rng(0).uniform(-1, 0.5, (40, 8, 8)))
    run = run_here(
        tmp_path / "run",
        *("dataset=measurements", f"dataset.path={tmp_path / 'y.npy'}", "dataset.range=[-1,1]"),
        *("corruption=saturation", "corruption.low=-1", "corruption.high=0.5"),
        *("corruption.noise.std=0.1", "metric.heldout=4"),
    )
    trained = capsys.readouterr().out
    evaluate_run(run, [])
    for printed in (trained, capsys.readouterr().out):
        words = " ".join(printed.split())
        assert "distance" in words and "std" in words and "hidden" not in words
        (row,) = (r for r in printed.splitlines() if "held-out │" in r or "the run │" in r)
        assert re.search(r"\d\.\d+ │", row)
