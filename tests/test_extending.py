"""The examples of docs/extending.md, made into a package of a user's own as they stand there."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import warm_python
from command import NASTY, ROOT, SHORT

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILE = re.compile(r"^`(mypackage/[\w/.]+)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = dict(FILE.findall(PAGE))
TRUST = "trust=[mypackage]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder outside the project that holds the package."""
    folder = tmp_path / NASTY
    for name, text in {"mypackage/__init__.py": "", **FILES}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs a short run in a folder, as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for the processes that it starts
    return warm_python.run(
        "-m", "diffem", "train", *overrides, cwd=folder, environment=environment
    )


def test_an_example_is_a_class_and_its_configuration() -> None:
    classes = {name for name in FILES if name.endswith(".py")}
    choices = {Path(name).stem.removeprefix("em_") for name in FILES if name.endswith(".yaml")}
    assert {Path(name).stem for name in classes} == choices and len(choices) == 5
    assert all(FILES[name].startswith('"""') for name in classes)


def test_one_of_each(folder: Path) -> None:
    """A linear channel, a method, a data source and a metric, in one run on two processes."""
    choices = ("corruption=dead_columns", "method=em_replacement", "dataset=stripes", "metric=mae")
    two = ("trainer.devices=2", "trainer.accelerator=cpu")
    done = train(folder, *SHORT, "prior=null", f"run_dir={folder / 'run'}", TRUST, *choices, *two)
    assert done.returncode == 0, done.stderr
    assert "stripes · dead_columns · em_replacement" in done.stdout and "MAE" in done.stdout
    assert done.stdout.count("summary.json") == 1  # the second process is silent
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert all(row["mae"] > 0 for row in (*summary["rounds"], summary["final"]))


def test_a_channel_of_draw_and_embed_is_swept_and_resumed(folder: Path) -> None:
    own = (*SHORT, "prior=null", TRUST, "corruption=overexposed")
    swept = train(folder, "-m", *own, "em.rounds=1", f"run_dir={folder / 'sweep'}")
    assert swept.returncode == 0, swept.stderr
    assert '"corruption": "overexposed"' in (folder / "sweep/0/summary.json").read_text()
    refused = train(folder, f"resume={folder / 'sweep' / '0'}")
    assert refused.returncode == 1 and "sweep/0: the run" in refused.stderr
    assert "was started with trust=[mypackage], which is taken from the" in refused.stderr
    resumed = train(folder, f"resume={folder / 'sweep' / '0'}", TRUST)
    assert resumed.returncode == 0 and "sweep/0 is finished already" in resumed.stderr
