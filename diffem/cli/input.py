"""The measurements of `--input`: how they are read, and a check before anything is drawn."""

import re
from argparse import Namespace

from diffem.data.files import FileRows
from diffem.data.folder import first_suffix
from diffem.data.format import Format
from diffem.data.held import Held, open_measurements
from diffem.data.layout import Reading
from diffem.data.survey import take_survey
from diffem.runtime.errors import UserError


def open_input(chosen: Namespace, form: Format, *, alike: bool = True) -> Held:
    """Opens the input; its headers are checked, nothing else is read.

    Arguments:
        chosen: The command's arguments.
        form: The form of the run's measurements.
        alike: Whether the measurements in files must be of one size.

    Raises:
        UserError: If it cannot be read so; the sentence names the command's own arguments.
    """
    try:
        reading = reading_of(chosen, form)
        return open_measurements(chosen.input, key="--input", reading=reading, alike=alike)
    except UserError as error:
        own = re.sub(r"\bdataset\.(key|axes|dims)\b", r"--\1", str(error))
        raise UserError(own) from error


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
