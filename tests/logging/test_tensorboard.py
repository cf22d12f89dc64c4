"""TensorBoard has the scores and the figures that W&B has."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffem.logging.calibration import log_calibration, read_charts
from diffem.logging.rounds import log_final, log_round


def test_rounds_and_the_result(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("round_001", "heldout", "prior"):
        Image.new("L", (8, 8)).save(figures / f"{name}.png")
    final = {"psnr": 21.0, "lpips": None, "left_out": {"residual_chi2": 2}, "prior": {"fd": 1.5}}
    (tmp_path / "summary.json").write_text(json.dumps({"final": final}))
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    log_round(
        [logger], {"round": 1, "psnr": 20.0, "loss": None}, figures / "round_001.png", step=7
    )
    log_final([logger], tmp_path)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert scalars["round/psnr"] == 20.0 and scalars["final/psnr"] == 21.0
    assert scalars["final/prior/fd"] == 1.5 and "final/lpips" not in scalars
    assert events.Tags()["images"] == ["round/panel", "final/heldout_panel", "final/prior_panel"]


def calibration(tmp_path: Path, **changed: Any) -> None:
    """Writes calibration_001.json, and one of a process that is at work after it."""
    each = {
        "p": {"ranks": 0.5, "tarp": 0.25, "all": 0.5},
        "histograms": {"pixels": [1, 3], "mean": [2, 0]},
        "tarp": {"levels": [0.0, 0.5, 1.0], "coverage": [0.0, 0.25, 1.0], "error": [0, 0.1, 0]},
        "coverage": {"90": {"value": 0.75, "error": 0.125}},
        "factor": {"value": 1.5, "error": None},
    }
    content = {"simulated": {**each, **changed}, "truth": each, "measurement_test": {"p": 0.125}}
    (tmp_path / "calibration_001.json").write_text(json.dumps(content))
    (tmp_path / "calibration_002.json").touch()
    (tmp_path / "figures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "figures" / "calibration_001.png")


def test_a_calibration(tmp_path: Path) -> None:
    calibration(tmp_path)
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    log_calibration([logger], tmp_path)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in events.Scalars(f"calibration_001/{tag}")]

    assert scalars("p/all") == [(0, 0.5)] and scalars("measurement_test/p") == [(0, 0.125)]
    assert scalars("coverage/90/value") == scalars("truth/coverage/90/value") == [(0, 0.75)]
    # Of four images one is in the lower half, with two bins: a density of 2 · 1/4.
    assert scalars("ranks/pixels") == [(25, 0.5), (75, 1.5)] == scalars("ranks/truth: pixels")
    assert scalars("coverage/TARP") == [(0, 0.0), (50, 0.25), (100, 1.0)]
    assert events.Tags()["images"] == ["calibration_001"]


@pytest.mark.parametrize(
    "damage", [{"tarp": 3}, {"histograms": {"pixels": [0, 0]}}, {"histograms": {"a": "b"}}]
)
def test_a_damaged_calibration_is_left_out(damage: dict[str, Any], tmp_path: Path) -> None:
    calibration(tmp_path, **damage)
    assert read_charts(tmp_path) is None


def test_a_calibration_of_an_earlier_result_is_left_out(tmp_path: Path) -> None:
    calibration(tmp_path)
    assert read_charts(tmp_path) is not None
    (tmp_path / "rounds.json").write_text(json.dumps({"rounds": [{"round": 3}]}))
    assert read_charts(tmp_path) is None  # the run was given more rounds after it
