"""A chunk's file, and beside it the sum of what is meant to be there.

chunk_00017.npy      float32, whole or absent
chunk_00017.sha256   its sha256, as `sha256sum --check` reads it
"""

import hashlib
import io
from pathlib import Path

from numpy.lib import format as npy
from torch import Tensor

from diffem.storage.atomic import matches, write_file


def write_chunk(path: Path, x: Tensor) -> None:
    """Writes a chunk and its sum.

    Arguments:
        path: The chunk's file.
        x: Reconstructions, (n, *shape).
    """
    buffer = io.BytesIO()
    npy.write_array(buffer, x.float().cpu().numpy(), allow_pickle=False)
    data = buffer.getbuffer()
    # The sum is of what is meant, and first: whatever the disk makes of the chunk, it is known.
    line = _line(hashlib.sha256(data).hexdigest(), path)
    write_file(sum_of(path), lambda file: file.write(line))
    write_file(path, lambda file: file.write(data), size=len(data))


def sum_of(path: Path) -> Path:
    """Returns where a chunk's sum is."""
    return path.with_suffix(".sha256")


def meant(path: Path) -> str | None:
    """Returns the sha256 that a chunk is meant to have; None if its sum is lost or damaged."""
    line = sum_of(path).read_bytes() if sum_of(path).exists() else b""
    digest = line[:64].decode("ascii", errors="replace")
    return digest if line == _line(digest, path) else None


def damaged(path: Path) -> bool:
    """Returns whether a chunk is there, and is not what was meant."""
    return path.exists() and not matches(path, meant(path))


def _line(digest: str, path: Path) -> bytes:
    return f"{digest}  {path.name}\n".encode()
