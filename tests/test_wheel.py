"""The wheel has all that a run needs: it works in an empty folder, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from command import ROOT, SHORT

TINY = ("em.rounds=1", "prior=null", "metric.heldout=4", "metric.samples=2", "metric.prior=4")
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_is_a_package_of_the_wheel() -> None:
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("diffem/**/*.py")}
    names = {str(folder).replace("/", ".") for folder in folders}
    assert set(PACKAGE["packages"]) == names | {"diffem.conf"}
    assert PACKAGE["package-dir"] == {"diffem.conf": "conf"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy of its sources."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("diffem", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run([sys.executable, *command], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = source.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The programs of an environment with the wheel; what it depends on is this environment's."""
    home = wheel.parents[1] / "venv"
    venv.create(home)
    site = sysconfig.get_path("purelib", "venv", {"base": str(home)})
    # Packages of that folder are found, but not an editable installation of diffem in it.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = ["--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", *command, str(wheel)],
        env=elsewhere(),
        check=True,
        capture_output=True,
    )
    return home / "bin"


def elsewhere() -> dict[str, str]:
    """Returns an environment in which the checkout is not found."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def run(command: list[str], folder: Path) -> str:
    """Returns what a command printed in a folder, where the checkout is not found."""
    done = subprocess.run(
        command, cwd=folder, env=elsewhere(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_package_and_its_configuration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("diffem/**/*.py")}
    files = {f"diffem/{path.relative_to(ROOT)}" for path in ROOT.glob("conf/**/*.yaml")}
    files |= {str(path.relative_to(ROOT)) for path in ROOT.glob("diffem/report/templates/*")}
    assert held == sources | files | {"diffem/py.typed"}


def test_it_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run([str(installed / "diffem"), "train", *SHORT, *TINY, "run_dir=run"], tmp_path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["final"]


@pytest.mark.slow
def test_it_compares_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    diffem, tiny = str(installed / "diffem"), [*SHORT, *TINY]
    run([diffem, "train", *tiny, "run_dir=run"], tmp_path)
    compare = [diffem, "compare", "--methods", "diffem", "--seeds", "0", "--out", "comparison"]
    run([*compare, "--", *tiny], tmp_path)  # whose runs are processes of their own
    final = [
        json.loads((tmp_path / folder / "summary.json").read_text())["final"]
        for folder in ("run", "comparison/diffem/seed_0")
    ]
    assert final[0] == final[1]


def test_its_commands_say_how_they_are_used(installed: Path, tmp_path: Path) -> None:
    python = str(installed / "python")
    assert "usage: diffem" in run([python, "-m", "diffem", "--help"], tmp_path)
    for command in ("train", "compare", "classify"):
        assert run([str(installed / "diffem"), command, "--help"], tmp_path)
    where = run([python, "-c", "import diffem; print(diffem.__file__)"], tmp_path)
    assert Path(where).is_relative_to(installed.parent)
