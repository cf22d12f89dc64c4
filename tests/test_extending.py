"""The examples of docs/extending.md, run as they stand there."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from command import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from diffem.config import allow_list
from diffem.config.allow_list import ALLOWED, check_targets
from diffem.corruption import Channel, GaussianNoise, Mask, Measurement, make_channel
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.posterior import Posterior
from diffem.report import RunReport
from diffem.report.comparison import table
from diffem.storage.reconstructions import ReconstructionStore

EXAMPLES = ROOT / "docs" / "extending.md"
CONF = ROOT / "conf"
SECONDS = {"e_step_seconds": 1.0, "m_step_seconds": 1.0}


def example(heading: str) -> dict[str, str]:
    """Returns the code blocks below a heading by their language."""
    section = EXAMPLES.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL))
    assert len(blocks["python"].strip().splitlines()) <= 20
    return blocks


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """Returns what makes a module of the package from the text of an example."""

    def load(name: str, text: str) -> ModuleType:
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        parent, _, last = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
        return module

    return load


class Lift(Posterior):
    """Draws the measurement itself, brought on the grid of x."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def draw(self, measurement: Measurement) -> Tensor:
        return self.channel.lift(measurement)


def test_a_metric(
    tmp_path: Path,
    load: Callable[[str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is computed, printed, drawn and compared, and no other file names it."""
    blocks, name = example("A metric"), "diffem.metric.mae.MAE"
    load("diffem.metric.mae", blocks["python"])
    assert f'`"{name}"`' in EXAMPLES.read_text()  # the line of the allow list
    monkeypatch.setattr(allow_list, "ALLOWED", {"metric": (*ALLOWED["metric"], name)})
    folder = tmp_path / "conf" / "metric"
    folder.mkdir(parents=True)
    (folder / "mae.yaml").write_text(blocks["yaml"])
    small = ["metric.samples=2", "metric.heldout=20", f"hydra.searchpath=[file://{folder.parent}]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["metric=mae", *small])
    check_targets({"metric": OmegaConf.to_container(cfg.metric, resolve=False)})

    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.05))
    train, heldout = (
        simulate_measurements(x, channel, seed=0, split=split)
        for x, split in zip(Digits([1, 8, 8], train=100).load(), ("train", "heldout"), strict=True)
    )
    report = RunReport(
        tmp_path / "run",
        {"dataset": "digits", "corruption": "mask", "method": "none", "seed": 0},
        instantiate(cfg.metric).fitting(channel),
        train,
        heldout,
        ReconstructionStore(tmp_path / "store", size=100, chunk_size=50, config_hash="test"),
        rounds=[{"round": k, "mae": 0.5, **SECONDS} for k in (0, 1)],
    )
    report.finish(Lift(channel), channel, None, torch.device("cpu"))

    x = channel.lift(heldout.measurement.select(slice(20)))
    expected = float((x - heldout.truth[:20]).abs().mean())
    summary = json.loads((report.run_dir / "summary.json").read_text())
    assert summary["final"]["mae"] == pytest.approx(expected)
    assert "MAE" in capsys.readouterr().out
    rows = table({"a": {0: summary}})
    assert rows[1][rows[0].index("MAE")] == f"{expected:.4f}"
    assert (report.figures / "curves.png").is_file()
