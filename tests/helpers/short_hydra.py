"""Hydra without work whose outcome it does not use: a third of composing, which most tests do."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.hydra import Hydra


def shorten(setattr: Callable[[object, str, object], None]) -> None:
    """Replaces two functions of Hydra.

    Arguments:
        setattr: Sets an attribute of an object; that of a monkeypatch sets it back.
    """
    get_mode, choices = Hydra.get_mode, defaults_list._create_interpolation_map

    def mode_given(hydra: Hydra, config_name: str | None, overrides: list[str]) -> object:
        """Composes to read `hydra.mode` only if it is given: no file may set it."""
        given = any("hydra.mode" in override for override in overrides)
        return get_mode(hydra, config_name, overrides) if given else None

    def choices_used(overrides: Any, defaults: Sequence[Any], self_added: bool) -> Any:
        """Makes the choices a configuration only where one of the defaults names another."""
        used = any(default.is_interpolation() for default in defaults)
        return choices(overrides, list(defaults), self_added) if used else None

    setattr(Hydra, "get_mode", mode_given)
    setattr(defaults_list, "_create_interpolation_map", choices_used)
