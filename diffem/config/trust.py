"""Packages of a user's own: `trust=[PACKAGE]` lets a configuration build what is in them.

The files in a package's folder `conf`, if it has one, become choices as those of diffem are. The
packages are taken from the command line alone: what is in a file may come from elsewhere. They are
found without importing them.
"""

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from diffem.config.paths import quoted
from diffem.runtime.errors import UserError

SEARCH_PATH = "hydra.searchpath"


def trusted_packages(overrides: Iterable[str]) -> list[str]:
    """Returns the packages that a command line trusts, none by default.

    Raises:
        UserError: If `trust` is no list of names.
    """
    given = [value for value in map(_value_of_trust, overrides) if value is not None]
    return list(dict.fromkeys(given[-1])) if given else []


def package_folders(packages: Sequence[str]) -> list[Path]:
    """Returns the folders of packages. Those in the current directory can be imported afterwards.

    Arguments:
        packages: Names of packages without dots.

    Raises:
        UserError: If one is not found.
    """
    folders = []
    for package in packages:
        spec = find_package(package)
        if spec is None:
            raise UserError(
                f"trust=[{package}]: no such package is installed or in the current directory, "
                f"{os.getcwd()}; start the command in the folder that holds it, or install it"
            )
        if spec.origin in ("built-in", "frozen") or package in sys.stdlib_module_names:
            raise UserError(f"trust=[{package}] is part of Python; give a package of your own")
        if importlib.util.find_spec(package) is None:
            sys.path.append(os.getcwd())
        folders += [Path(folder) for folder in spec.submodule_search_locations or ()]
    return folders


def find_package(name: str) -> ModuleSpec | None:
    """Returns where a package is, installed or in the current directory; None if it is nowhere."""
    if not name.isidentifier():
        return None
    try:
        return importlib.util.find_spec(name) or PathFinder.find_spec(name, [os.getcwd()])
    except ValueError:  # a module without a specification, as __main__
        return None


def with_search_path(arguments: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Returns a command's arguments with folders added to those that Hydra searches for choices.

    Arguments:
        arguments: The arguments.
        folders: The folders; one that is searched already is not added again.
    """
    if not folders:
        return list(arguments)
    others = [a for a in arguments if not a.startswith(f"{SEARCH_PATH}=")]
    searched: list[str] = []
    for argument in (a for a in arguments if a not in others):
        value = _value(argument)
        searched = [str(v) for v in (value if isinstance(value, list) else [value])]
    searched = list(dict.fromkeys([*searched, *(f"file://{folder}" for folder in folders)]))
    return [*others, f"{SEARCH_PATH}=[{','.join(map(quoted, searched))}]"]


def _value_of_trust(override: str) -> list[str] | None:
    """Returns the names in an override of `trust`; None for another override."""
    if override.lstrip("+~").partition("=")[0] != "trust":
        return None
    value = None if override.startswith("~") else _value(override)
    names = [str(name) for name in value] if isinstance(value, list) else []
    if not isinstance(value, list) or not all(name.isidentifier() for name in names):
        raise UserError(
            f"trust must be a list of packages without dots, as in trust=[mypackage], got "
            f"{override!r}"
        )
    return names


def _value(override: str) -> Any:  # noqa: ANN401 - plain types, or a sweep
    # Not above: `diffem.load` needs this module, and no Hydra.
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).value()
