"""Mistakes of the user's, told in one sentence, and the checks that find them."""

import math


class UserError(ValueError):
    """A mistake that the user can mend; commands print its sentence without a traceback.

    The sentence names the key or file, the value, what is allowed and what to do.
    """


def check_count(name: str, value: object, minimum: int = 1) -> int:
    """Returns a whole number of at least a minimum.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return value


def check_positive(name: str, value: object) -> float:
    """Returns a positive, finite number.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def check_fraction(name: str, value: object) -> float:
    """Returns a number in [0, 1).

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)
