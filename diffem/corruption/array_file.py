"""Array files: what a corruption reads from a file, as an instrument's point spread function.

A run is bound to what such a file holds, and its weights carry it in place of the path.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffem.runtime.errors import UserError

KEYS = {
    "coils": "the path of a .npy file",
    "kernel": "the path of a .npy, PNG or TIFF file, or nested lists of numbers",
    "masks": "the path of a .npy file",
}
"""The keys of corruptions whose value may be the path of a file, and what holds their numbers."""
CARRIED = "data:application/x-npy;base64,"
"""How the text begins that carries a file's content in place of its path (RFC 2397)."""

Nested = Sequence[float | Sequence[float | Sequence[float]]]


def array_files(node: dict[Any, Any]) -> Iterator[tuple[dict[Any, Any], str]]:
    """Yields those parts of a corruption that read a file, each with the key that names it.

    Arguments:
        node: A node of conf/corruption, in plain types.
    """
    for part in (node, *(node.get("parts") or ())):
        for key in KEYS if isinstance(part, dict) else ():
            if isinstance(part.get(key), str):
                yield part, key


def read_array(key: str, given: str | Nested) -> np.ndarray:
    """Returns the numbers that a key gives, float64, or complex128 of a file of complex ones.

    Arguments:
        key: The last word of the key.
        given: The path of a .npy file or a grey PNG or TIFF image, what `carried` returned, or
            nested lists of numbers.

    Raises:
        UserError: If it is none of them, or the file cannot be read.
    """
    try:
        if not isinstance(given, str):
            return np.array(given, dtype=np.float64)
        if given.startswith(CARRIED):
            content = io.BytesIO(base64.b64decode(given.removeprefix(CARRIED), validate=True))
            values = np.load(content, allow_pickle=False)
        elif Path(given).suffix.lower() == ".npy":
            values = np.load(given, allow_pickle=False)
        else:
            with Image.open(given, formats=("PNG", "TIFF")) as image:
                values = np.asarray(image)
        return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    except Exception as error:  # decoders raise many types
        raise UserError(
            f"{shown_file(key, given)} cannot be read as numbers "
            f"({' '.join(str(error).split())}); give {KEYS[key]}"
        ) from error


def shown_file(key: str, given: str | Nested) -> str:
    """Returns how messages name a key and its file, but not numbers that stand for one."""
    path = isinstance(given, str) and not given.startswith(CARRIED)
    return f"corruption.{key}={given if path else '[…]'}"


def carried(values: np.ndarray) -> str:
    """Returns a text that `read_array` reads as the same numbers, bit for bit."""
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    return CARRIED + base64.b64encode(content.getvalue()).decode()
