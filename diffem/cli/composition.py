"""Hydra's `compose`, on files and overrides that were checked before Hydra reads them.

Hydra resolves interpolations in lists of defaults, follows aliases and nesting without a limit,
and leaves some errors as tracebacks.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffem.config.hydra_node import GROUPS
from diffem.config.interpolation import DEPTH, check_interpolations
from diffem.config.yaml_file import check_yaml
from diffem.runtime.errors import UserError

PACKAGE = Path(__file__).parents[1]
# A wheel has the folder in the package, a checkout beside it.
CONF = next(c for c in (PACKAGE / "conf", PACKAGE.parent / "conf") if c.is_dir())
NAME = "train"
DIGITS = 1000
"""The largest number of digits of a number; Python refuses to read more than 4,300."""


class CheckedFileSource(FileConfigSource):
    """Reads choices from a folder, and checks each file before it is built.

    Attributes:
        built: What files of a place and content were built to. Hydra changes what it is given,
            a copy, which takes a quarter of the time; a run composes some twenty files four times.
    """

    built: ClassVar[dict[tuple[str, str, bytes], ConfigResult]] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        """Returns a file's configuration.

        Raises:
            UserError: If the file is too large, is outside its folder, or holds an interpolation
                that is not allowed.
        """
        if ".." in PurePosixPath(config_path).parts:
            raise UserError(f"{config_path} leads out of the folder of choices; give a name")
        file = Path(self.path) / self._normalize_file_name(config_path)
        check_yaml(file)
        key = (self.provider, str(file), file.read_bytes())
        if key not in self.built:
            self.built[key] = self._build(config_path)
        return deepcopy(self.built[key])

    def _build(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        try:
            check_interpolations(OmegaConf.to_container(result.config, resolve=False))
        except UserError as error:
            raise UserError(f"{self.path}/{config_path}: {error}") from error
        return result


# A launcher hands Hydra's registry to its jobs, where Hydra refuses a source of another name.
CheckedFileSource.__name__ = FileConfigSource.__name__


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Returns the configuration that overrides compose to, unresolved.

    Arguments:
        overrides: The overrides, without sweeps.
        with_hydra: Whether Hydra's own node stays in it.

    Raises:
        UserError: If an override or a file is refused before it is composed.
        HydraException: If the overrides do not compose.
    """
    check_overrides(overrides)
    Plugins.instance()  # registers the sources; this one then takes the place of Hydra's own
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = CheckedFileSource
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(NAME, list(overrides), return_hydra_config=with_hydra)
    except (UserError, HydraException, OmegaConfBaseException, MemoryError, OSError):
        raise
    except RecursionError as error:
        raise UserError("the settings are nested too deeply; give flatter values") from error
    except Exception as error:  # of Hydra's and OmegaConf's own code, on what they do not expect
        text = " ".join(str(error).split())
        raise UserError(
            f"the settings cannot be composed ({type(error).__name__}: {text}); check the last "
            "that was added"
        ) from error


def check_overrides(overrides: Sequence[str]) -> None:
    """Checks overrides before they are parsed: their length, nesting and interpolations.

    Raises:
        UserError: If one is refused.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        name, depth = key.lstrip("+~"), 0
        for character in value:
            depth += (character in "[{(") - (character in ")}]")
            if depth > DEPTH:
                raise UserError(f"{name} is nested more than {DEPTH} deep; give a flatter value")
        if re.search(rf"\d{{{DIGITS}}}", value):
            raise UserError(f"{name} holds a number of more than {DIGITS} digits; give another")
        check_interpolations(value, name)
        if "${" in key:
            raise UserError("a key holds an interpolation; give it as it is")


def plain(cfg: DictConfig) -> dict[Any, Any]:
    """Returns a configuration in plain types, unresolved."""
    found = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    assert isinstance(found, dict)
    return found


@cache
def composed_once(overrides: tuple[str, ...]) -> dict[Any, Any]:
    """Returns what overrides compose to, with Hydra's own node, in plain types.

    It is composed once in a process, which takes a fifth of a second: for overrides that read no
    files but diffem's own, which are as fixed as its code.
    """
    return plain(compose(overrides, with_hydra=True))


def override_key(override: str) -> str:
    """Returns the key, or the group, of an override."""
    return override.lstrip("+~").partition("=")[0]


def is_hydra(override: str) -> bool:
    """Returns whether an override is of Hydra's own node."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/", "hydra="))


def is_hydra_choice(override: str) -> bool:
    """Returns whether an override is a choice of launcher or sweeper."""
    return override_key(override) in GROUPS
