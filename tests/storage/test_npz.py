"""Small files of arrays: damaged ones hold nothing."""

from pathlib import Path

import pytest

from diffem.storage.npz import load_arrays


@pytest.mark.parametrize("content", [b"", b"PK", b"not a file of arrays", None])
def test_a_damaged_file_holds_nothing(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    assert load_arrays(path) == {}
    (tmp_path / "link.npz").symlink_to(path)
    assert load_arrays(tmp_path / "link.npz") == {}
