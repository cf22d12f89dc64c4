"""Figures as files: a PNG file is written whole or not at all, as every file of a run is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffem.runtime.errors import UserError
from diffem.storage.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figure(path: Path, figure: "Figure", *, dpi: int = 150) -> None:
    """Writes a figure as a PNG file, atomically and durably.

    Arguments:
        path: The file.
        figure: The figure.
        dpi: Pixels per inch.

    Raises:
        UserError: If the disk is full; the file that was there stays.
    """
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


@contextmanager
def beside(written: Path) -> Iterator[None]:
    """Opens a scope of figures, in which a full disk raises that what was written is whole.

    The command that is started again would compute it all anew, or refuse its own folder.

    Arguments:
        written: The file or folder of results that the figures are drawn from.

    Raises:
        UserError: If the disk is full.
    """
    try:
        yield
    except UserError as error:
        fault, _, _ = str(error).partition("; ")
        raise UserError(f"{fault}; {written} is whole, its figures are not") from error
