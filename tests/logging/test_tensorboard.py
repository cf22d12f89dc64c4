"""TensorBoard has the scores and the figures that W&B has."""

import json
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
