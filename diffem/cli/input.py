"""The measurements of `--input`: how they are read, and a check before anything is drawn."""

from argparse import Namespace

from diffem.data.files import FileRows
from diffem.data.folder import first_suffix
from diffem.data.format import Format
from diffem.data.layout import Reading
from diffem.data.survey import take_survey


def reading_of(chosen: Namespace, form: Format) -> Reading:
    """Returns how the input is read: as the arguments say, or the run's if it is of that type.

    Arguments:
        chosen: The command's arguments.
        form: The form of the run's measurements.
    """
    given = Reading.of(chosen.key, chosen.axes, chosen.dims)
    if first_suffix(chosen.input) != form.suffix:
        return given
    return Reading(given.key or form.key, given.axes or form.axes, given.dims or form.dims)


def check_measurements(rows: FileRows) -> None:
    """Reads measurements once, so that what does not fit is refused before anything is drawn.

    Raises:
        UserError: If one cannot be read, or does not fit the channel.
    """
    rows.check_fit(take_survey(rows.held, len(rows)).missing)
