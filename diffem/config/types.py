"""Checks that each override has the type of the value it replaces.

The types are a number, a truth value, a text, a list, or a part with keys of its own. Which
numbers or texts make sense is checked by the class that they are given to.
"""

import math
import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from typing import Any

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES

CHECKED_ELSEWHERE = ("trainer", "hydra")
# The last word of keys of what is no number for which null has a meaning, whatever the file's is.
NULLABLE = (
    *("prior", "student", "augment", "clean", "guard", "stop", "lpips", "weights", "resume"),
    "fused",
)
TEXTS_TOO = ("coils", "kernel", "masks")  # what a file may hold: its path
TYPE_NAMES = {
    dict: "a part with keys of its own, and a _target_ if it has one",
    list: "a list",
    bool: "true or false",
    float: "a finite number",
    str: "a text (a number in quotes: \"'1'\")",
}
LISTS = {
    "corruption.parts": "a list of operators and distortions, as in [{_target_: "
    "diffem.corruption.Blur, sigma: 1.0, kernel_size: 5}]",
}
"""What the lists of a key are made of, where a list alone does not say it."""


def check_types(given: Mapping[Any, Any], files: Mapping[Any, Any]) -> None:
    """Checks that every value has the type of the value in the chosen files.

    Arguments:
        given: The configuration, in plain types.
        files: What the chosen files compose to without the overrides of values.

    Raises:
        UserError: If a value has another type, or is null where null has no meaning.
    """
    _check(given, files, "", files)


def _check(given: Mapping[Any, Any], files: Mapping[Any, Any], where: str, root: Any) -> None:  # noqa: ANN401
    for key, expected in files.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(expected, str) and (link := re.fullmatch(r"\$\{([\w.]+)\}", expected)):
            expected = reduce(getitem, link.group(1).split("."), root)
        if (
            key not in given
            or name in CHECKED_ELSEWHERE
            or expected is None
            or (isinstance(expected, str) and name in RANGES)  # a word for numbers, as auto is
            or given[key] == expected
        ):
            continue
        value, wanted = given[key], _type(expected)
        nullable = key in NULLABLE or (name in RANGES and None in RANGES[name].also)
        if _is_interpolation(value) or (value is None and nullable):
            continue
        # A parameter of a channel is a number, or the range that each sample's is drawn from.
        parameter = where.startswith("corruption") and key != "learn" and wanted in (float, list)
        fits = any(_has_type(value, t) for t in ((float, list) if parameter else (wanted,)))
        fits |= key in TEXTS_TOO and isinstance(value, str)
        if isinstance(value, dict) and isinstance(expected, dict):
            fits &= "_target_" in value or "_target_" not in expected
            _check(value, expected, name, root)
        if not fits:
            raise UserError(f"{name} must be {type_name(name, expected)}, got {value!r}")


def type_name(key: str, expected: object) -> str:
    """Returns what sentences call the type that a key's value must have.

    Arguments:
        key: The full key.
        expected: The value in the chosen files, in plain types.
    """
    return LISTS.get(key) or TYPE_NAMES[_type(expected)]


def _type(value: object) -> type:
    """Returns a value's type; int counts as float."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _has_type(value: object, wanted: type) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return _type(value) is wanted and finite


def _is_interpolation(value: object) -> bool:
    return isinstance(value, str) and "${" in value
