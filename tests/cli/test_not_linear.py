"""Channels that are not linear: a run trains, is read by pages, and samples."""

from pathlib import Path

import pytest
import torch
from in_process import run_here

import diffem
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
