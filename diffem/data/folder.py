"""Folders of measurements, and what belongs to each by the same name.

DIR/*.tif                     measurements alone
DIR/measurements/NAME.tif     measurements, and beside them
DIR/masks/NAME.png            where they were measured: not zero
DIR/std/NAME.tif              the noise's standard deviation of each pixel
DIR/operator/NAME.npy         the operator's parameters φ
DIR/truth/NAME.tif            the clean image, for metrics alone
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffem.data.layout import Reading
from diffem.data.npy import Rows
from diffem.data.reader import ARRAY, CANONICAL, IMAGE, KNOWN, TIFF, reader_of, stem_of, suffix_of
from diffem.data.source import inside, unreadable
from diffem.data.stack import FileMasks, FileStack, FileValues
from diffem.runtime.errors import UserError

MEASUREMENTS = "measurements"
BESIDE = ("masks", "std", "operator", "truth")


class Folder(NamedTuple):
    """What a folder holds."""

    y: FileStack
    """The measurements, (N, C, *S)."""
    operator: Rows | None = None
    """The operator's parameters φ, (N, *P); masks are such."""
    std: Rows | None = None
    """The noise's standard deviation of each pixel, (N, C, *S)."""
    truth: Rows | None = None
    """The clean images."""


def open_folder(
    folder: Path, reading: Reading, *, limit: int | None, key: str, alike: bool = True
) -> Folder:
    """Opens a folder of measurements; the files' headers are checked, nothing else is read.

    Arguments:
        folder: The folder.
        reading: Which array of a file is read, and how.
        limit: The number of measurements after which further files are left out; None for none.
        key: The setting that names the folder, as the sentences begin.
        alike: Whether the measurements must be of one size.

    Raises:
        UserError: If there are no measurements, a file cannot be read without loss or is unlike
            the others, or a name is in one folder and not in another.
    """
    if not (folder / MEASUREMENTS).is_dir():
        files = list_files(folder, key=key)
        return Folder(FileStack(files, reading, key=key, limit=limit, alike=alike))
    unknown = {
        f.name
        for f in folder.iterdir()
        if f.is_dir() and not f.name.startswith(".") and f.name not in (MEASUREMENTS, *BESIDE)
    }
    if unknown:
        raise UserError(
            f"{key}: {folder} has a folder {min(unknown)}; beside {MEASUREMENTS} there may be "
            f"{', '.join(BESIDE)}: rename it, or move it away"
        )
    files = list_files(folder / MEASUREMENTS, key=key)
    stems = [stem_of(file) for file in files]
    found = {name: folder / name for name in BESIDE if (folder / name).is_dir()}
    beside = {name: _matched(stems, path, key) for name, path in found.items()}
    y = FileStack(files, reading, key=key, limit=limit, alike=alike)
    if y.sliced and found:
        raise UserError(
            f"{key}: {folder} has {min(found)} beside slices of volumes, which have no files of "
            "their own; give the volumes as NIfTI files"
        )
    if {"masks", "operator"} <= beside.keys():
        raise UserError(
            f"{key}: {folder} has masks and operator, and a mask is an operator too; keep one"
        )
    plain = reading._replace(key=None)
    rows: dict[str, Rows] = {}
    for name, matched in beside.items():
        matched = matched[: len(y.parts)]
        if name == "operator":
            rows[name] = read_operators(matched, y, key=key)
        else:
            kind = FileMasks if name == "masks" else FileStack
            rows[name] = kind(matched, plain, key=key, beside=y, alike=alike)
    if "masks" in rows:
        rows["operator"] = rows.pop("masks")
    return Folder(y, **rows)


def list_files(folder: Path, *, key: str) -> list[Path]:
    """Returns the files of a folder that are of a known format, in the order of their names.

    Hidden files, whose names begin with a dot, are left out: macOS writes such beside others. So
    are .npy files beside others.

    Arguments:
        folder: The folder.
        key: The setting that names it, as the sentences begin.

    Raises:
        UserError: If there are none, they are of several formats, one leads out of the folder, or
            two differ in nothing but the suffix.
    """
    try:
        found = sorted(f for f in folder.iterdir() if suffix_of(f) and not f.name.startswith("."))
    except OSError as error:
        raise unreadable(f"{key}: {folder}", error) from error
    formats: dict[str, list[Path]] = {}
    for file in found:
        known = KNOWN[suffix_of(file) or ""]
        formats.setdefault((IMAGE if known is TIFF else known).reader, []).append(file)
    if len(formats) > 1:
        formats.pop(ARRAY.reader, None)
    if not formats:
        raise UserError(f"{key}: {folder} has no {', '.join(KNOWN)} files; put the images there")
    if len(formats) > 1:
        first, second = (files[0].name for files in list(formats.values())[:2])
        raise UserError(
            f"{key}: {folder} holds files of several formats, {first} and {second}; keep one"
        )
    (files,) = formats.values()
    names: dict[str, Path] = {}
    for file in files:
        inside(file, folder, key=key)
        if (other := names.setdefault(stem_of(file), file)) is not file:
            raise UserError(
                f"{key}: {file} and {other.name} differ in nothing but the suffix; rename one"
            )
    return files


def first_suffix(path: Path) -> str | None:
    """Returns the suffix of a file, or of a folder's first file; None if there is none known.

    Arguments:
        path: A file or a folder of measurements, which may not exist.
    """
    suffix = suffix_of(path)
    if suffix is None and path.is_dir():
        inner = path / MEASUREMENTS
        files = sorted((inner if inner.is_dir() else path).iterdir())
        found = [suffix_of(f) for f in files if not f.name.startswith(".")]
        suffix = next((s for s in found if s and KNOWN[s] is not ARRAY), None)
    return CANONICAL.get(suffix, suffix) if suffix else None


def read_operators(files: Sequence[Path], y: FileStack, *, key: str) -> FileValues:
    """Returns the operator's parameters φ in files, in memory.

    Arguments:
        files: The file of each file of measurements: its array is φ; or that of each of its
            measurements, (n, *P), if there are n > 1.
        y: The measurements.
        key: As the sentences begin.

    Raises:
        UserError: If one cannot be read, or is of another shape than the first.
    """
    values, counts = list[np.ndarray](), list[int]()
    for file, part in zip(files, y.parts, strict=True):
        name, n = f"{key}: {file}", part.layout.count
        reader = reader_of(suffix_of(file) or "", name)
        try:
            with reader.open(file, name) as content:
                phi = np.asarray(content.array[(slice(None),) * len(content.array.shape)])
        except UserError:
            raise
        except Exception as error:  # the libraries raise many types
            raise unreadable(name, error) from error
        each = n > 1 and len(phi) == n
        values += [*phi] if each else [phi]
        counts += [1] * n if each else [n]
        if values[-1].shape != values[0].shape or values[-1].dtype.kind not in "buif":
            raise UserError(
                f"{name} holds {values[-1].dtype} of shape {list(values[-1].shape)}, and "
                f"{files[0].name} {list(values[0].shape)}; all must be real numbers of one shape"
            )
    return FileValues(values, counts)


def _matched(stems: Sequence[str], folder: Path, key: str) -> list[Path]:
    """Returns the file of each name in a folder.

    Raises:
        UserError: If one is missing, or there is one of another name.
    """
    files: Mapping[str, Path] = {stem_of(f): f for f in list_files(folder, key=key)}
    if missing := [stem for stem in stems if stem not in files]:
        raise UserError(
            f"{key}: {folder} has no file for {_some(missing)} of {MEASUREMENTS}; add it, or move "
            "the measurement away"
        )
    if further := sorted(files.keys() - {*stems}):
        raise UserError(
            f"{key}: {folder} has {_some(further)}, and {MEASUREMENTS} has no file of that name; "
            "rename it, or move it away"
        )
    return [files[stem] for stem in stems]


def _some(names: Sequence[str]) -> str:
    """Returns the first names of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
