"""Withdrawn measurements: those that a run does without, named in a text file.

One name a line: of a benchmark the number of a training measurement; of a folder of files a
file's name without its suffix, of other measurements the number of a row of y, from 0. Patches
have the name, or the number, of the image that they are cut from. Empty lines and those that begin
with # are left out. A name may be in double quotes, as a string of JSON, and one that begins with
# or ", or has spaces at its ends, must be.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffem.corruption import LinearChannel, Measurement
from diffem.corruption.recorded import Recorded
from diffem.data.files import FileRows
from diffem.data.measurements import MeasurementSet
from diffem.data.patches import Patches
from diffem.runtime.errors import UserError


def read_names(file: Path, key: str) -> list[str]:
    """Returns the names in a file.

    Arguments:
        file: The text file.
        key: The setting that names it, as the sentence begins.

    Raises:
        UserError: If it cannot be read, or names nothing, or a name in quotes is none of JSON.
    """
    try:
        # Editors of Windows begin a text with a mark of its encoding.
        lines = [line.strip() for line in file.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}={file} cannot be read ({error}); give a text file of one name a line"
        ) from error
    names = [_unquoted(line, f"{key}={file}") for line in lines if line and line[0] != "#"]
    if not names:
        raise UserError(f"{key}={file} names no measurement; give one name a line")
    return names


def written(name: str) -> str:
    """Returns a name as a file of names has it, in quotes if it must be."""
    plain = name == name.strip() and name.isprintable() and name[:1] not in ("", "#", '"')
    return name if plain else json.dumps(name)


def rows_named(part: MeasurementSet, names: Sequence[str]) -> Tensor:
    """Returns the rows of a measurement set that are named, (n,)."""
    wanted = set(names)
    rows = [row for row, name in enumerate(_names(part)) if name in wanted]
    return torch.tensor(rows, dtype=torch.int64)


def withdraw(
    train: MeasurementSet, heldout: MeasurementSet, names: Sequence[str], *, key: str
) -> tuple[MeasurementSet, MeasurementSet]:
    """Returns training and held-out measurements without those that are named.

    Of measurements that came with their operator, that of the others alone is drawn again.

    Arguments:
        train: The training measurements.
        heldout: The held-out ones; of a benchmark all stay.
        names: The names.
        key: The setting that they are from, as the sentences begin.

    Raises:
        UserError: If one is the name of no measurement, or too few are left.
    """
    parts = [train, heldout] if isinstance(train.source, FileRows) else [train]
    known = {name for part in parts for name in _names(part)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"{key}: {written(unknown[0])} is no measurement of the data; the first one is "
            f"{written(next(_names(train)))}"
        )
    left = [_without(part, rows_named(part, names)) for part in parts]
    if len(left[0]) < 2 or len(left[-1]) < 1:
        raise UserError(f"{key}: too few measurements are left; withdraw fewer")
    channel, source = train.channel, train.source
    operator = channel.forward_operator if isinstance(channel, LinearChannel) else None
    if isinstance(operator, Recorded) and isinstance(operator.recorded, FileRows):
        assert isinstance(source, FileRows) and isinstance(channel, LinearChannel)
        every = replace(train, source=operator.recorded)
        others = _without(every, rows_named(every, names)).source
        assert isinstance(others, FileRows)
        channel = channel.with_operator(Recorded(operator.operator, others))
    both = [*left, heldout][:2]
    return both[0].under(channel), both[1].under(channel)


def _unquoted(line: str, where: str) -> str:
    """Returns the name in a line.

    Raises:
        UserError: If it begins with a quote and is no string of JSON.
    """
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except ValueError as error:
        raise UserError(
            f"{where}: {line} begins with a quote and is no string of JSON ({error}); write it as "
            f"{json.dumps(line)} if the quote is a part of the name"
        ) from error


def _names(part: MeasurementSet) -> Iterator[str]:
    """Yields the name of each measurement of a set."""
    source = part.source
    if not isinstance(source, FileRows):
        yield from map(str, _numbers(part).tolist())
        return
    held = source.held
    for row in source.rows.tolist():
        number = held.y.origin(row)[0] if isinstance(held.y, Patches) else row
        yield str(number) if held.names is None else held.names[number]


def _numbers(part: MeasurementSet) -> Tensor:
    """Returns the numbers by which measurements of a benchmark are named, (N,)."""
    return torch.arange(len(part)) if part.numbers is None else part.numbers


def _without(part: MeasurementSet, rows: Tensor) -> MeasurementSet:
    """Returns a measurement set without some of its rows."""
    keep = torch.ones(len(part), dtype=torch.bool)
    keep[rows] = False
    index, source = keep.nonzero().flatten(), part.source
    if isinstance(source, FileRows):
        source = replace(source, rows=source.rows[index])
    else:
        assert isinstance(source, Measurement)
        source = source.select(index)
    truth, groups = (None if each is None else each[index] for each in (part.truth, part.groups))
    numbers = _numbers(part)[index]  # a second erasure names them as the first one did
    return replace(part, source=source, truth=truth, groups=groups, numbers=numbers)
