"""Figures as files: a PNG file is written whole or not at all, as every file of a run is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffem.storage.atomic import DiskFull, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as a PNG file of 150 pixels an inch, atomically and durably.

    Arguments:
        path: The file.
        figure: The figure.

    Raises:
        UserError: If the disk is full; the file that was there stays.
    """
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=150))


@contextmanager
def figures_of(written: Path) -> Iterator[None]:
    """Opens a scope of figures, in which a full disk raises that what they show is written.

    The command that is started again would compute it all anew, or refuse its own folder.

    Arguments:
        written: The file or folder of results that the figures show.

    Raises:
        UserError: If the disk is full.
    """
    try:
        yield
    except DiskFull as error:
        raise DiskFull(error.path, f"{written} is whole, its figures are not") from error
