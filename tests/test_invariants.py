"""docs/invariants.md names tests and files that exist, and each law's own tests."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from command import ROOT

PAGE = (ROOT / "docs" / "invariants.md").read_text()
SECTIONS = {
    int(number): text
    for number, text in re.findall(
        r"^## Law (\d+)\.(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
}
TESTS = sorted(path for path in (ROOT / "tests").rglob("test_*.py"))


def node_ids(text: str) -> list[tuple[str, str]]:
    """Returns the files and names of the tests that a text names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


@cache
def functions(path: Path) -> set[str]:
    """Returns the names of a file's test functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name[:5] == "test_"
    }


def laws_of(path: Path) -> set[int]:
    """Returns the laws that a test file's docstring begins with."""
    said = re.match(
        r"Laws? (\d+(?:(?:, | and )\d+)*)",
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "",
    )
    return {int(n) for n in re.findall(r"\d+", said.group(1))} if said else set()


def test_there_are_ten_laws() -> None:
    assert list(SECTIONS) == list(range(1, 11))


@pytest.mark.parametrize("law", SECTIONS)
def test_the_tests_of_a_law_exist(law: int) -> None:
    named = node_ids(SECTIONS[law])
    assert named
    assert len(named) == SECTIONS[law].count("::"), "a test is written in another way"
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert name in functions(ROOT / file), f"{file} has no {name}"


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`((?:diffem|tests|conf)/[\w/]*(?:\.py)?)`", PAGE):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_and_page_number_the_laws_alike(path: Path) -> None:
    file = str(path.relative_to(ROOT))
    for law in laws_of(path):
        assert file in dict(node_ids(SECTIONS[law])), f"{file} is said to hold law {law}"
    for name in functions(path):
        if law := re.match(r"test_law_(\d+)_", name):
            assert (file, name) in node_ids(SECTIONS[int(law.group(1))]), f"{file}::{name}"
