"""YAML files from elsewhere: how large one may be, in itself and with its anchors in place.

Aliases of aliases make a file of a hundred bytes a configuration of billions of values, and the
parser calls itself for each level of nesting. A file is measured before it is built.
"""

import os
import stat
from pathlib import Path

import yaml

from diffem.config.interpolation import DEPTH, VALUES
from diffem.runtime.errors import UserError

LARGEST = 2**18
"""The largest size of a file, in bytes; a run's configuration has about 4,000."""


def check_yaml(file: Path) -> None:
    """Checks that a YAML file can be read at a bounded cost.

    Arguments:
        file: The file.

    Raises:
        UserError: If it is no regular file, too large, nested too deeply, no YAML, or holds too
            many values when its aliases are in place.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
        with open(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{file} is no regular file; remove it")
            content = opened.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); restore it") from error
    if len(content) > LARGEST:
        raise UserError(f"{file} has more than {LARGEST} bytes; give a smaller file")
    try:
        values, depth = _measure(content)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"{file} is damaged: {' '.join(str(error).split())}; restore it"
        ) from error
    if values > VALUES or depth > DEPTH:
        raise UserError(
            f"{file} holds more than {VALUES} values or nests them more than {DEPTH} deep; give a "
            "smaller file"
        )


def _measure(content: bytes) -> tuple[int, int]:
    """Returns the number of values and the depth of a document, aliases in place.

    Raises:
        YAMLError: If it is no YAML.
        ValueError: If a node is in itself.
    """
    nodes = [[0, 0]]  # of the nodes that are open: values and depth so far
    names: list[str | None] = [None]
    anchors: dict[str, tuple[int, int]] = {}

    def add(values: int, depth: int) -> None:
        nodes[-1][0] += values
        nodes[-1][1] = max(nodes[-1][1], depth)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for event in yaml.parse(content, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in names:
                raise ValueError(f"*{event.anchor} is in itself")
            add(*anchors.get(event.anchor, (1, 1)))
        elif isinstance(event, yaml.ScalarEvent):
            add(1, 1)
            if event.anchor:
                anchors[event.anchor] = (1, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            nodes.append([1, 1])
            names.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            values, depth = nodes.pop()
            if name := names.pop():
                anchors[name] = (values, depth)
            add(values, depth + 1)
        if len(nodes) > DEPTH + 1 or nodes[-1][0] > VALUES:
            return VALUES + 1, DEPTH + 1
    return nodes[0][0], nodes[0][1]
