"""The examples of docs/extending.md, applied to a copy of the project as they stand there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from command import ROOT, SHORT

LIST = "diffem/config/allow_list.py"
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(
    r"^`([\w/.]+)`(?:, one line more under `\"(\w+)\"`)?\n\n```\w+\n(.*?)^```", re.M | re.S
)


class Piece(NamedTuple):
    """A file of an example, or a line more in one."""

    path: str
    key: str
    text: str


def example(section: str) -> list[Piece]:
    """Returns the pieces of a section's examples in their order."""
    sections = dict(SECTION.findall((ROOT / "docs" / "extending.md").read_text()))
    return [Piece(*found) for found in BLOCK.findall(sections[section])]


def applied(pieces: list[Piece], root: Path) -> Path:
    """Returns a copy of the project with the pieces in it."""
    for name in ("diffem", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", root)
    for path, key, text in pieces:
        file = root / path
        if not key:
            assert not file.exists(), f"{path} is there already"
            file.write_text(text)
            continue
        content = file.read_text()
        start = content.index(f'"{key}": (\n') + len(f'"{key}": (\n')
        file.write_text(content[:start] + f"        {text}" + content[start:])
    return root


def train(root: Path, *overrides: str) -> str:
    """Returns what a short run of the project printed."""
    done = subprocess.run(
        [sys.executable, str(root / "train.py"), *SHORT, "prior=null", "run_dir=run", *overrides],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("section", ["A channel", "A method", "A data source", "A metric"])
def test_an_example_touches_at_most_three_files(section: str) -> None:
    pieces = example(section)
    listed = [i for i, piece in enumerate(pieces) if piece.key]
    assert listed, "nothing is listed"
    for before, last in zip([-1, *listed], listed, strict=False):
        assert len({piece.path for piece in pieces[before + 1 : last + 1]}) <= 3
    # What a file of the project's own needs.
    assert all(
        piece.text.startswith('"""')
        for piece in pieces
        if piece.path.endswith(".py") and not piece.key
    )


def test_one_of_each(tmp_path: Path) -> None:
    """A linear channel, a method, a data source and a metric in one run."""
    names = ("A channel", "A method", "A data source", "A metric")
    root = applied([piece for name in names for piece in example(name)], tmp_path)
    choices = ("corruption=dead_columns", "method=em_replacement", "dataset=stripes", "metric=mae")
    out = train(root, *choices)
    assert "stripes · dead_columns · em_replacement" in out and "MAE" in out
    summary = json.loads((root / "run" / "summary.json").read_text())
    assert all(row["mae"] > 0 for row in (*summary["rounds"], summary["final"]))


def test_a_channel_that_is_not_linear(tmp_path: Path) -> None:
    root = applied(example("A channel"), tmp_path)
    out = train(root, "corruption=saturation")
    assert "digits · saturation · diffem" in out
