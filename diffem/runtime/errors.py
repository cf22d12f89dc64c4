"""Errors that are caused by user input, and checks that raise them."""

import math


class UserError(ValueError):
    """An error caused by user input; commands show its message without a traceback.

    The message is one sentence that names the key or file, the value, what is allowed and what to
    do.
    """


def check_count(name: str, value: object, minimum: int = 1) -> int:
    """Returns a value that is a whole number of at least a minimum.

    Arguments:
        name: The setting's name, for the message.
        value: The value.
        minimum: The smallest value that is allowed.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return value


def check_positive(name: str, value: object) -> float:
    """Returns a value that is a positive, finite number.

    Arguments:
        name: The setting's name, for the message.
        value: The value.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def check_fraction(name: str, value: object) -> float:
    """Returns a value that is a number in [0, 1).

    Arguments:
        name: The setting's name, for the message.
        value: The value.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)
