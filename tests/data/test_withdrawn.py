"""The file that names withdrawn measurements: every name of a file can be written in it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffem.corruption import Denoising, GaussianNoise, make_channel
from diffem.data.files import MeasurementFiles
from diffem.data.withdrawn import read_names, withdraw, written
from diffem.runtime.errors import UserError

NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1)


@settings(deadline=None, max_examples=50)
@given(names=st.lists(NAMES, min_size=1))
@example(names=["#3", '"', " a ", "a\nb", "\u2028", "\x0c", "\\#", "é", "caf\udce9", "3"])
def test_names_are_read_as_they_were_written(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("names") / "rows.txt"
    file.write_bytes("".join(f"{written(name)}\n" for name in names).encode())
    assert read_names(file, "--rows") == names


def test_what_needs_no_quotes_has_none(tmp_path: Path) -> None:
    for name in ("3", "scan 3", "é", "a#b", 'a"b'):
        assert written(name) == name
    file = tmp_path / "rows.txt"
    file.write_bytes(b'# a comment\r\n\r\n 3 \r\n"#4"\r\n')
    assert read_names(file, "--rows") == ["3", "#4"]


def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text('"a\n')
    with pytest.raises(UserError, match=r'"a begins with a quote .* write it as "\\"a" if'):
        read_names(file, "--rows")


def test_files_of_names_like_comments_are_withdrawn(tmp_path: Path) -> None:
    """Such a name was taken for a comment, and could not be withdrawn."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k, image in enumerate(np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)):
        Image.fromarray(image).save(folder / f"#{k}.png")
    source = MeasurementFiles(str(folder), heldout=0.3)
    sets = source.measurement_sets(make_channel(Denoising(source.shape), GaussianNoise(9.0)))
    (tmp_path / "rows.txt").write_text('"#3"\n"#4"\n')
    left = withdraw(*sets, read_names(tmp_path / "rows.txt", "--rows"), key="--rows")
    assert sum(map(len, left)) == 7
    with pytest.raises(UserError, match=r'"#99" is no measurement of the data; .* is "#\d"'):
        withdraw(*sets, ["#99"], key="--rows")
