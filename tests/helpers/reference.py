"""Writes docs/reference.md: each key of the configuration, its defaults and what it may be.

It is made from the files of conf/ and their comments, the ranges of diffem/runtime/ranges.py and
the classes of diffem/config/allow_list.py: `make reference`.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml
from command import ROOT

from diffem.config.allow_list import ALLOWED
from diffem.runtime.ranges import RANGES

PAGE = ROOT / "docs" / "reference.md"
CONF = ROOT / "conf"
HEAD = """# Reference: all keys

Each key of the configuration, by group; [Choices](choices.md) says how to choose and to set them.
Where choices differ, they are named before what is theirs. A key with a + is in no file: it is
added by `+KEY=VALUE`, where the class that has it is chosen by `_target_`. A number outside its
range is refused, also one in a list. Some choices allow less, such as a `corruption.kernel_size`
that fits into the images, and say so.

This page is written by `make reference`, from the files of `conf/`, from
`diffem/runtime/ranges.py` and from `diffem/config/allow_list.py`.
"""
TABLE = "| key | default | allowed | meaning |\n|---|---|---|---|"
GROUPS = (
    *("dataset", "corruption", "corruption/noise", "network", "sampler", "method", "init"),
    *("memory", "balance"),
    *("metric", "trainer", "strategy", "logger", "student"),
)
MOST_NAMES = 5  # choices that are named in a cell
SHARED = ("method.objective.condition", "method.posterior.condition")  # are ${method.condition}


class Leaf(NamedTuple):
    """A key of a file."""

    key: str
    default: str
    """As the file has it; "" for a part with keys of its own."""
    comment: str


def leaves(node: yaml.Node, where: str, lines: list[str]) -> Iterator[Leaf]:
    """Yields the keys below a node of a file."""
    inner = node.value
    if isinstance(node, yaml.SequenceNode):
        inner = [(yaml.ScalarNode("", str(i)), part) for i, part in enumerate(node.value)]
    for name, value in inner:
        if name.value in ("defaults", "hydra", "_partial_"):
            continue
        key = f"{where}.{name.value}".lstrip(".")
        comment = ""
        if name.start_mark and not lines[name.start_mark.line][: name.start_mark.column].strip():
            comment = lines[name.start_mark.line].partition(" # ")[2].strip()
        inside = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if value.value and isinstance(inside[0], yaml.MappingNode):
            if comment:
                yield Leaf(key, "", comment)
            yield from leaves(value, key, lines)
        else:
            text = "".join(lines)[value.start_mark.index : value.end_mark.index]
            yield Leaf(key, text, comment)


def place(file: Path) -> str:
    """Returns the key that those of a file of conf/ are below."""
    package = re.match(r"# @package (\w+)\n", file.read_text(encoding="utf-8"))
    if package and package[1] == "_global_":
        return ""
    return package[1] if package else ".".join(file.relative_to(CONF).parts[:-1])


def read(file: Path) -> dict[str, Leaf]:
    """Returns the keys of a choice, with those of the choices that it is made from."""
    text = file.read_text(encoding="utf-8")
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    found: dict[str, Leaf] = {}
    for base in yaml.safe_load(text).get("defaults", ()):
        if isinstance(base, str) and base != "_self_":
            found |= read(file.with_name(f"{base}.yaml"))
    for leaf in leaves(node, place(file), text.splitlines(keepends=True)):
        comment = leaf.comment or (found[leaf.key].comment if leaf.key in found else "")
        found[leaf.key] = leaf._replace(comment=comment)
    return found


def joined(cells: dict[str, str], *, named: bool = False) -> str:
    """Returns the cells of choices as one, with the choices' names where they differ.

    Arguments:
        cells: The cell of each choice.
        named: Whether the names stand also before a cell that is that of all.
    """
    names: dict[str, list[str]] = {}
    for choice, cell in cells.items():
        names.setdefault(cell, []).append(choice)
    if len(names) == 1 and not named:
        return next(iter(names))
    most = max(names, key=lambda cell: len(names[cell]))
    if len(names[most]) > MOST_NAMES:
        names[most] = names.pop(most) and ["others"]  # at the end
    return "<br>".join(f"{', '.join(held)}: {cell}" for cell, held in names.items() if cell)


def allowed(key: str, default: str, choice: str) -> str:
    """Returns what a key may be, under a choice."""
    if held := RANGES.get(f"{key}@{choice}", RANGES.get(key)):
        return str(held)
    if key.endswith("_target_"):
        registry = next((r for p, r in ALLOWED.items() if fnmatchcase(key, f"{p}._target_")), {})
        modules: dict[str, list[str]] = {}
        for name in registry:
            modules.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
        return ", ".join(f"of `{module}`: {', '.join(held)}" for module, held in modules.items())
    return "true or false" if default in ("true", "false") else ""


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows(choices: dict[str, dict[str, Leaf]], prefix: str) -> Iterator[str]:
    """Yields the rows of a group, or of a part of train.yaml.

    Arguments:
        choices: The keys of each choice.
        prefix: The key that those are below.
    """
    known = dict.fromkeys(key for found in choices.values() for key in found)
    for key in known:
        held = {name: found[key] for name, found in choices.items() if key in found}
        may = {name: allowed(key, leaf.default, name) for name, leaf in held.items()}
        classes = {n: choices[n].get(f"{prefix}._target_", Leaf("", n, "")).default for n in held}
        comments = {classes[n]: leaf.comment for n, leaf in held.items() if leaf.comment}
        defaults = {
            n: leaf.default.rpartition(".")[2] if key.endswith("_target_") else f"`{leaf.default}`"
            for n, leaf in held.items()
        }
        yield row(
            f"`{key}`",
            joined(defaults, named=len(held) < len(choices)).replace("``", ""),
            joined(may),
            joined({n: leaf.comment or comments.get(classes[n], "") for n, leaf in held.items()}),
        )
    yield from further_rows({*known}, prefix)


def further_rows(known: set[str], prefix: str) -> Iterator[str]:
    """Yields the rows of keys that the registry allows below a key, and no file has."""
    for where, registry in ALLOWED.items():
        if not f"{where}.".startswith(f"{prefix}.") or where in SHARED:
            continue
        if where in ("corruption.noise", "trainer.strategy") and where != prefix:
            continue  # groups of their own
        for name in sorted({name for names in registry.values() for name in names}):
            key = f"{where}.{name}"
            if key in ALLOWED or any(fnmatchcase(k, key) for k in known):
                continue
            owners = [c.rpartition(".")[2] for c, names in registry.items() if name in names]
            whose = "" if len(owners) == len(registry) else f"of {', '.join(owners)}"
            yield row(f"`+{key}`", "", allowed(key, "", ""), whose)


def page() -> str:
    """Returns the page."""
    parts = [HEAD]
    for group in GROUPS:
        choices = {file.stem: read(file) for file in sorted((CONF / group).glob("*.yaml"))}
        prefix = "trainer.strategy" if group == "strategy" else group.replace("/", ".")
        parts += [f"## {group}\n", TABLE, *rows(choices, prefix), ""]
    own = read(CONF / "train.yaml")
    tops = [key.partition(".")[0] for key in own]
    single = {key: leaf for key, leaf in own.items() if tops.count(key.partition(".")[0]) == 1}
    parts += ["## The run\n", TABLE, *rows({"train": single}, "none"), ""]
    for top in dict.fromkeys(top for top in tops if tops.count(top) > 1):
        found = {key: leaf for key, leaf in own.items() if key.partition(".")[0] == top}
        parts += [f"## {top}\n", TABLE, *rows({"train": found}, top), ""]
    options = [row(f"`{key}`", str(held)) for key, held in RANGES.items() if key.startswith("--")]
    parts += ["## Numbers of commands\n", "| option | allowed |\n|---|---|", *options]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
