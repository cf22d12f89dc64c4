"""Kinds: a value is of the kind that the chosen files of the configuration have in its place.

A number, a truth value, a text, a list or a part with keys of its own. Which numbers or texts make
sense is for the class to say that they are given to.
"""

import math
import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from typing import Any

from diffem.runtime.errors import UserError

OWN = ("trainer", "hydra")  # their values are checked elsewhere, one by one
NULLABLE = (  # the last word of keys for which null has a meaning of its own, whatever a file has
    *("prior", "augment", "lpips", "weights", "crop", "train", "heldout", "variance", "resume"),
    *("steps_per_round", "epochs_per_round", "seconds", "nfe", "keep_rounds", "foreach"),
)
KINDS = {
    dict: "a part with keys of its own, and a _target_ if it has one",
    list: "a list",
    bool: "true or false",
    float: "a finite number",
    str: "a text (a number in quotes: \"'1'\")",
}


def check_types(given: Mapping[Any, Any], files: Mapping[Any, Any]) -> None:
    """Accepts a configuration whose values are of the kinds that the chosen files have.

    Arguments:
        given: The configuration, in plain types.
        files: The one that the chosen files make by themselves.

    Raises:
        UserError: If a value is of another kind, or null where null means nothing.
    """
    _check(given, files, "", files)


def _check(given: Mapping[Any, Any], files: Mapping[Any, Any], where: str, root: Any) -> None:  # noqa: ANN401
    for key, expected in files.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(expected, str) and (link := re.fullmatch(r"\$\{([\w.]+)\}", expected)):
            expected = reduce(getitem, link.group(1).split("."), root)
        if key not in given or name in OWN or expected is None or given[key] == expected:
            continue
        value, kind = given[key], _kind(expected)
        if _open(value) or (value is None and key in NULLABLE):
            continue
        # The level of a channel is a number, or the range that each sample's own is drawn from.
        level = where.startswith("corruption") and key != "learn" and kind in (float, list)
        fits = any(_is(value, k) for k in ((float, list) if level else (kind,)))
        if isinstance(value, dict) and isinstance(expected, dict):
            fits &= "_target_" in value or "_target_" not in expected
            _check(value, expected, name, root)
        if not fits:
            raise UserError(f"{name} must be {KINDS[kind]}, got {value!r}")


def _kind(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _is(value: object, kind: type) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return _kind(value) is kind and finite


def _open(value: object) -> bool:
    """Returns whether what will stand in a place is not known yet."""
    return isinstance(value, str) and "${" in value
