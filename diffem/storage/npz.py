"""Small .npz files of a run directory; reading executes no code, a damaged file holds nothing."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffem.storage.atomic import write_file

LARGEST = 2**26  # bytes of a file: one that is larger is not of a run

Arrays = Mapping[str, np.ndarray]


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Writes arrays into a .npz file, atomically."""
    write_file(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_arrays(path: Path) -> Arrays:
    """Returns the arrays of a file; none if it is absent, damaged, or no such file."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return {}
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except Exception:  # a flipped bit may be of the zip, of its compression, of a header's text
        return {}
