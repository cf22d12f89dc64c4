"""A study: named rows of overrides, what all rows share, and the seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffem.cli.compose import CONF, conf_folders
from diffem.runtime.errors import UserError
from diffem.runtime.process import Job

STUDIES = CONF / "study"
FIELDS = {"rows", "common", "seeds"}
SEEDS = (0, 1, 2)
SET_BY_OPTIONS = {"seed": "--seeds", "run_dir": "--out"}


@dataclass(frozen=True)
class Study:
    """Rows of overrides that are compared, each with several seeds.

    Raises:
        UserError: If a row's name cannot name a folder, an override is not KEY=VALUE, or an
            override sets the seed or the run directory.
    """

    rows: Mapping[str, tuple[str, ...]]
    """Each row's own overrides."""
    common: tuple[str, ...] = ()
    """The overrides of all rows; a row's own override them."""
    seeds: tuple[int, ...] = SEEDS
    """The seeds of each row."""
    name: str = ""
    """The name of the study's file, without its suffix; empty if there is no file."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", row):
                raise UserError(
                    f"a row's name is made of letters, digits, '_', '-' and '.', got {row!r}"
                )
        for override in (o for part in (self.common, *self.rows.values()) for o in part):
            key, equals, _ = override.lstrip("+~").partition("=")
            if not key or not (equals or override.startswith("~")):
                raise UserError(f"an override is KEY=VALUE, got {override!r}")
            if key in SET_BY_OPTIONS:
                raise UserError(
                    f"{key} is set by {SET_BY_OPTIONS[key]}, got the override {override!r}"
                )

    def jobs(self, out: Path) -> list[Job]:
        """Returns the jobs in the order they run in: all rows of a seed, then the next seed.

        So a disturbance of the machine affects all rows alike.

        Arguments:
            out: The folder of the comparison.
        """
        return [
            job_of(out, row, seed, (*self.common, *overrides))
            for seed in dict.fromkeys(self.seeds)
            for row, overrides in self.rows.items()
        ]


def job_of(out: Path, row: str, seed: int, overrides: tuple[str, ...] = ()) -> Job:
    """Returns the job of a row and a seed.

    Arguments:
        out: The folder of the comparison.
        row: The row's name.
        seed: The seed.
        overrides: The job's overrides, besides its seed.
    """
    run_dir = out / row / f"seed_{seed}"
    return Job(f"{row}, seed {seed}", run_dir, (*overrides, f"seed={seed}"))


def methods_study(methods: Sequence[str], overrides: Sequence[str] = ()) -> Study:
    """Returns the study with a row for each method.

    Arguments:
        methods: The methods.
        overrides: What all runs are given. It may trust packages, which may have methods.

    Raises:
        UserError: If a method is unknown.
    """
    folders = [folder / "method" for folder in conf_folders(overrides)]
    known = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
    if unknown := [m for m in methods if m not in known]:
        raise UserError(f"--methods can be {', '.join(known)}; got {', '.join(unknown)}")
    return Study({method: (f"method={method}",) for method in methods})


def known_studies() -> list[str]:
    """Returns the names of the studies in conf/study."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(name: str) -> Study:
    """Returns a study of conf/study.

    Raises:
        UserError: If there is no such study, or its file does not hold one.
    """
    if name not in known_studies():
        raise UserError(f"--study can be {', '.join(known_studies())}; got {name}")
    path = STUDIES / f"{name}.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    wrong = f"{path}: a study has rows (NAME: [KEY=VALUE, …]), and may have common and seeds"
    if not isinstance(content, dict) or not {"rows"} <= content.keys() <= FIELDS:
        raise UserError(wrong)
    rows, seeds = content["rows"], content.get("seeds", list(SEEDS))
    if not isinstance(rows, dict) or not rows or not all(isinstance(r, str) for r in rows):
        raise UserError(f"{wrong}; its rows must be named, numbers in quotes")
    if not seeds or not isinstance(seeds, list) or not all(type(s) is int for s in seeds):
        raise UserError(f"{wrong}; its seeds must be whole numbers, got {seeds!r}")
    own = {str(row): _overrides(value, f"{path}: rows.{row}") for row, value in rows.items()}
    common = _overrides(content.get("common", []), f"{path}: common")
    return Study(own, common, tuple(seeds), name)


def _overrides(value: Any, where: str) -> tuple[str, ...]:  # noqa: ANN401 - from YAML
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where} must be a list of KEY=VALUE, got {value!r}")
    if any(item.lstrip("+~").startswith("trust=") for item in value):
        raise UserError(
            f"{where} has trust, which is taken from the command line alone; give it after --"
        )
    return tuple(value)
