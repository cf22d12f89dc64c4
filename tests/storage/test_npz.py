"""Small files of arrays: damaged ones hold nothing."""

from pathlib import Path

import numpy as np
import pytest

from diffem.storage.npz import load_arrays, save_arrays


@pytest.mark.parametrize("content", [b"", b"PK", b"not a file of arrays", None])
def test_a_damaged_file_holds_nothing(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    assert load_arrays(path) == {}
    (tmp_path / "link.npz").symlink_to(path)
    assert load_arrays(tmp_path / "link.npz") == {}


@pytest.mark.parametrize(("marker", "at"), [(b"PK\x01\x02", 10), (b"{'descr'", 0)])
def test_a_flipped_bit_of_what_is_read_first(marker: bytes, at: int, tmp_path: Path) -> None:
    """The way of compression in the zip, which is then unknown; a header's text."""
    path = tmp_path / "a.npz"
    save_arrays(path, {"a": np.zeros(3)})
    content = bytearray(path.read_bytes())
    content[content.index(marker) + at] ^= 0x60
    path.write_bytes(content)
    assert load_arrays(path) == {}
