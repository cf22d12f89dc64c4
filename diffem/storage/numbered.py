"""Numbered files of a finished run's evaluations: evaluation_001.json, calibration_001.json."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def free_number(folder: Path, stem: str) -> Iterator[str]:
    """Opens a scope that writes STEM_001.json, or the next number, which no other process takes.

    Yields:
        The file's name without its suffix; an empty file holds it, and goes if the scope fails.
    """
    names = (file.stem.removeprefix(f"{stem}_") for file in folder.glob(f"{stem}_*.json"))
    k = max((int(name) for name in names if name.isdecimal()), default=0) + 1
    while True:
        file = folder / f"{stem}_{k:03d}.json"
        try:
            file.open("x").close()
            break
        except FileExistsError:  # another process was faster
            k += 1
    try:
        yield file.stem
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def newest(folder: Path, stem: str) -> Path | None:
    """Returns the newest STEM_001.json and so on that is written; None if there is none.

    An empty file holds the number of a process that is at work.
    """
    files = [file for file in folder.glob(f"{stem}_*.json") if file.stat().st_size]
    # 1000 comes after 999.
    return max(files, key=lambda file: (len(file.name), file.name), default=None)


def is_evaluation(path: Path) -> bool:
    """Returns whether a path is named like the file of an evaluation of a finished run."""
    return re.fullmatch(r"(calibration|evaluation)_\d{3,}\.json", path.name) is not None
