"""What the program advises works (issue 11, B8).

A run keeps its configuration, and only some keys of it may differ when it is resumed. Advice that
is given once a run has begun names keys of these, or a new run directory: "set em.keep_rounds" and
"lower em.chunk_size" were refused as another config.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ROOT
from omegaconf import OmegaConf

from diffem.em.datamodule import check_batch
from diffem.runtime.errors import UserError
from diffem.storage.run_dir import MUTABLE

CONF = ROOT / "conf"
SAYS = (
    "FloatingPointError",
    "NonFiniteError",
    "UserError",
    "exit_now",
    "report_error",
    "say",
    "warn",
)
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
TOP = ("em", "m_step", "blind", "schedule", "prior", "assumed", *GROUPS)
KEY = re.compile(rf"(?<![\w./-])(?:{'|'.join(TOP)})\.[a-z][a-z_.0-9]*")
ADDED = {"dataset.label"}  # keys that are in no file, and given as +KEY=VALUE
LATE = (  # where a run may be when it says something, once its configuration is saved
    "cli/errors.py",
    "em/callbacks.py",
    "em/datamodule.py",
    "em/loop.py",
    "em/rollback.py",
    "logging/",
    "report/",
    "runtime/",
    "storage/",
)


def messages() -> Iterator[tuple[Path, int, str]]:
    """Yields the file, the line and the constant text of everything that the program may say."""
    for path in sorted((ROOT / "diffem").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in SAYS:
                parts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
                yield path, node.lineno, "".join(p for p in parts if isinstance(p, str))


def keys_of_files() -> set[str]:
    """Returns the keys of conf/: of train.yaml, and of each choice below its group."""

    def walk(node: object, name: str) -> Iterator[str]:
        yield name
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, f"{name}.{key}" if name else str(key))

    found = set()
    for path in CONF.rglob("*.yaml"):
        group = ".".join(path.relative_to(CONF).parent.parts)
        if package := re.match(r"# @package (\S+)", path.read_text()):
            group = package[1].replace("_global_", "")
        found |= set(walk(OmegaConf.to_container(OmegaConf.load(path)), group))
    return found


def test_advice_on_a_run_that_has_begun_can_be_followed() -> None:
    seen = 0
    for path, line, text in messages():
        if not str(path.relative_to(ROOT / "diffem")).startswith(LATE):
            continue
        for key in KEY.findall(text):
            seen += 1
            allowed = any(key.startswith(name) for name in MUTABLE)
            assert allowed or "a new run_dir" in text, f"{path}:{line}: {key} in: {text}"
    assert seen > 8


def test_advice_names_keys_that_there_are() -> None:
    known, seen, wrong = keys_of_files(), 0, []
    for path, line, text in messages():
        for key in KEY.findall(text):
            seen += 1
            name = re.escape(key.rstrip(".")).replace(r"\.\.", r"\.\w+\.")  # a name is put in
            if not any(re.fullmatch(name, k) for k in known | ADDED):
                wrong.append(f"{path}:{line}: {name} in: {text}")
    assert not wrong and seen > 40


def test_a_batch_that_devices_cannot_share_is_refused_before_anything_is_written() -> None:
    """The configuration was saved before, and another em.batch_size then refused."""
    check_batch(128, 2)
    with pytest.raises(
        UserError, match="a multiple of the number of devices, 2, got 9; choose an"
    ):
        check_batch(9, 2)
    text = (ROOT / "diffem" / "cli" / "train.py").read_text()
    assert text.index("check_batch(settings") < text.index("open_run(cfg")
