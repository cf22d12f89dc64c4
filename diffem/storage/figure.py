"""Figures as files: a PNG file is written whole or not at all, as every file of a run is."""

from pathlib import Path
from typing import TYPE_CHECKING

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
