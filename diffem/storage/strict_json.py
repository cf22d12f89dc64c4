"""Strict JSON (RFC 8259), which has neither NaN nor infinity."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGITS = sys.float_info.max_10_exp  # of a whole number that is a float for sure


def to_json(value: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - plain types
    """Returns plain types as JSON; a number that is not finite becomes null.

    Arguments:
        value: Dictionaries, lists, texts, numbers, truth values and None.
        indent: The number of spaces a level is indented by; None for one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:  # noqa: ANN401 - plain types
    """Returns what JSON holds, in plain types.

    A whole number that no float can be becomes infinity, as 1e999 does: what is read is compared
    with floats, and shown as they are.

    Raises:
        ValueError: If it is no JSON.
        RecursionError: If its lists lie too deep in one another.
    """
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < DIGITS else float(digits)


def read_list(path: Path) -> list[Any]:
    """Returns the JSON list in a file; an empty one if it is absent, or holds no list."""
    try:
        held = from_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return held if isinstance(held, list) else []


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
