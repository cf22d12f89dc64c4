"""`diffem dashboard`: the W&B workspace, whose specification is built without a server."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import ROOT

from diffem.cli import dashboard
from diffem.cli.compose import compose
from diffem.config.build import build
from diffem.config.extras import WORKSPACES
from diffem.logging.calibration import COLUMNS
from diffem.metric.energy import HIDDEN_MSE


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as raised:
        dashboard.main(arguments)
    assert raised.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def sections(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the panels of each section of a specification."""
    bank = json.loads(path.read_text(encoding="utf-8"))["spec"]["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


def test_the_specification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "workspace.json"
    dashboard.main(["me/mine", "--out", str(out)])
    assert capsys.readouterr().out == f"wrote {out}\n"
    held = json.loads(out.read_text())
    assert (held["entity"], held["project"]) == ("me", "mine")
    panels = sections(out)
    assert list(panels) == [
        "Reconstructions", "Scores over rounds", "Scores over NFE", "M-step", "Prior",
        "Held-out scores", "Calibration",
    ]  # fmt: skip
    assert panels["Reconstructions"][0]["config"]["mediaKeys"] == ["round/panel"]
    for section, axis in (("Scores over rounds", "round"), ("Scores over NFE", "round/nfe")):
        plots = [panel["config"] for panel in panels[section]]
        assert {plot["xAxis"] for plot in plots} == {axis}
        assert ["round/psnr"] in [plot["metrics"] for plot in plots]
    (loss,) = panels["M-step"]
    assert (loss["config"]["xAxis"], loss["config"]["metrics"]) == ("step", ["m_step/loss"])
    assert panels["Prior"][0]["config"]["metrics"] == ["prior/loss"]
    assert error(capsys, "me/mine", "--out", str(out)).endswith("exists; choose another --out")
    dashboard.main(["me/mine", "--out", str(tmp_path / "new" / "folder" / "w.json")])
    assert (tmp_path / "new" / "folder" / "w.json").is_file()
    capsys.readouterr()
    below_a_file = str(out / "w.json")
    assert "cannot be written" in error(capsys, "me/mine", "--out", below_a_file)


def test_every_figure_without_ground_truth_has_its_panels(tmp_path: Path) -> None:
    dashboard.main(["me/mine", "--out", str(tmp_path / "workspace.json")])
    panels = sections(tmp_path / "workspace.json")
    evaluation = build(compose([]).metric, "metric")
    names = [score.name for score in evaluation.truth_free]
    assert {"hidden_entries", "residual_ks", "measurement_p", "residual_chi2"} <= set(names)
    assert not {"psnr", "frechet_pixels"} & set(names)
    for section in ("Scores over rounds", "Scores over NFE"):
        plotted = [panel["config"]["metrics"] for panel in panels[section]]
        assert plotted[: len(names)] == [[f"round/{name}"] for name in names]
        assert ["round/psnr_mean"] in plotted
    numbers = [panel["config"].get("metrics") for panel in panels["Held-out scores"]]
    assert all([f"final/{name}"] in numbers for name in names)


def test_charts_of_a_calibration_are_of_its_tables(tmp_path: Path) -> None:
    dashboard.main(["me/mine", "--out", str(tmp_path / "workspace.json")])
    panels = sections(tmp_path / "workspace.json")["Calibration"]
    charts = [panel["config"] for panel in panels if panel["viewType"] == "Vega2"]
    assert [chart["panelDefId"] for chart in charts] == ["wandb/lineseries/v0"] * 2
    for chart, (table, (line, x, y)) in zip(charts, COLUMNS.items(), strict=True):
        assert chart["fieldSettings"] == {"lineKey": line, "step": x, "lineVal": y}
        assert f'"value": "{table}"' in json.dumps(chart["userQuery"])
    numbers = [panel["config"].get("metrics") for panel in panels]
    assert ["calibration/p/all"] in numbers and ["calibration/coverage/90/value"] in numbers


@pytest.mark.parametrize("given", ["mine", "/mine", "me/", "me/mine/more", ""])
def test_a_project_that_is_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no W&B project; give ENTITY/PROJECT" in error(capsys, given)


def test_without_an_account_nothing_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("wandb.setup", lambda: _Setup())
    assert "no W&B account is known on this machine; run wandb login" in error(capsys, "me/mine")


class _Setup:
    class settings:
        api_key = identity_token_file = None
        base_url = "https://api.wandb.ai"


def test_without_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(WORKSPACES), "installed", property(lambda e: e != WORKSPACES))
    said = error(capsys, "me/mine")
    assert "diffem dashboard needs the package wandb-workspaces" in said
    assert "pip install 'diffem[dashboard]'" in said


def test_the_sweep_composes_and_needs_no_clean_images() -> None:
    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["metric"]["name"] == f"final/{HIDDEN_MSE.name}"
    fixed = [word for word in sweep["command"] if "=" in word]
    for place in (0, -1):
        chosen = [f"{key}={p['values'][place]}" for key, p in sweep["parameters"].items()]
        cfg = compose([*fixed, *chosen])
        assert "wandb" in cfg.logger
        assert cfg.sampler.steps == sweep["parameters"]["sampler.steps"]["values"][place]
