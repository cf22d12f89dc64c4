"""Paths on a command line, with any character, in the grammar of Hydra's overrides.

Hydra reads KEY=VALUE by a grammar in which `é`, `#`, `=`, brackets, commas, spaces and more mean
something else, or nothing, unless the value is quoted. Here the values of keys that hold paths are
quoted before Hydra reads them, so that a user need not.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

OR_NUMBERS = ("coils", "groups", "kernel", "masks")
"""The last words of the keys whose values are paths, a number or a list in brackets."""
NAMES = (
    *("run_dir", "resume", "path", "weights", "save_dir", "dir", "withdrawn"),
    *OR_NUMBERS,
)
"""The last words of the keys whose values are paths."""
NEVER_SWEPT = re.compile(r"run_dir|resume|hydra\..*")
_OVERRIDE = re.compile(r"(\+{0,2}([^=+~]+))=(.+)", re.DOTALL)
_PLAIN = re.compile(r"(\.{0,2}/|[A-Za-z_])[A-Za-z0-9_/.+@-]*")  # read by Hydra as it stands
_OTHER = re.compile(r"null|true|false|inf|nan", re.IGNORECASE)  # read as another type
_NUMBERS = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|\[.*\]|true|false", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_SWEEP = re.compile(r"(choice|shuffle|sort|tag|glob)\(.*\)", re.DOTALL)
_ITEM = re.compile(rf"(?:{_QUOTED.pattern}|[^,])+", re.DOTALL)


def quote_paths(arguments: Iterable[str], *, sweep: bool = False) -> list[str]:
    """Quotes the paths among a command's arguments, where Hydra would not read them as they are.

    Values that are quoted already, and null, stay, and of `OR_NUMBERS` numbers and lists that are
    no name of a file that exists; a leading ~ is the home directory. Interpolations are resolved
    in quoted values too.

    Arguments:
        arguments: The arguments; those that are no KEY=PATH stay.
        sweep: Whether commas separate the values of a sweep. They do not in `run_dir` and
            `resume`, nor in the name of a file or folder that exists.
    """
    return [_quote_argument(argument, sweep) for argument in arguments]


def path_override(key: str, path: Path | str) -> str:
    """Returns the override that sets a key to a path."""
    return f"{key}={quoted(str(path))}"


def unquoted(value: str) -> str:
    """Returns the text of a value that may be quoted."""
    if not _QUOTED.fullmatch(value):
        return value
    # Backslashes are doubled before a quote alone, so half of them, rounded down, are the text's.
    return re.sub(rf"(\\+)(?={value[0]})", lambda run: run[0][: len(run[0]) // 2], value[1:])[:-1]


def quoted(text: str) -> str:
    """Returns a text as a value that Hydra reads as this text, quoted if it must be."""
    if _PLAIN.fullmatch(text) and not _OTHER.fullmatch(text):
        return text
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text)
    return "'" + doubled.replace("'", r"\'") + "'"


def given_path(override: str) -> str | None:
    """Returns the path that an override sets, which may be quoted; None if it sets none."""
    name = override.partition("=")[0].rpartition(".")[2]
    (value,) = (o.partition("=")[2] for o in quote_paths([override]))
    if name not in NAMES or (name in OR_NUMBERS and _is_numbers(value)):
        return None
    return None if value.lower() == "null" else unquoted(value)


def _quote_argument(argument: str, sweep: bool) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or match[2].rpartition(".")[2] not in NAMES:
        return argument
    value, one = match[3], not sweep or NEVER_SWEPT.fullmatch(match[2]) or os.path.exists(match[3])
    numbers = match[2].rpartition(".")[2] in OR_NUMBERS
    if (not one and _SWEEP.fullmatch(value)) or (numbers and _is_numbers(value)):
        return argument
    values = [value] if one else _ITEM.findall(value)
    quoted_values = (v if numbers and _is_numbers(v) else _quote_value(v) for v in values)
    return f"{match[1]}={','.join(quoted_values)}"


def _is_numbers(value: str) -> bool:
    # Of a name that is too long, or has a null character, os.path says no; a Path raises.
    return bool(_NUMBERS.fullmatch(value)) and not os.path.isfile(value)


def _quote_value(value: str) -> str:
    if value.lower() == "null" or _QUOTED.fullmatch(value):
        return value
    if re.match(r"~(/|$)", value):
        value = str(Path(value).expanduser())
    return quoted(value)
