"""What a configuration may build: every `_target_` is checked before anything is imported.

Hydra imports and calls whatever a `_target_` names, on the command line or in an experiment file
that came from elsewhere. Its own block list is no boundary: this allow list is one.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from diffem.config.types import check_types
from diffem.runtime.errors import UserError

PARTS = (  # packages whose own classes and functions may be built
    "diffem.corruption",
    "diffem.data",
    "diffem.denoiser",
    "diffem.logging",
    "diffem.posterior",
    "diffem.em",
    "diffem.metric",
    "diffem.network",
    "azula.noise",
    "azula.sample",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "torch.optim",
)
NAMES = ("lightning.Trainer",)
PLUGINS = (  # what hydra's own node may build
    "hydra._internal.core_plugins",
    "hydra_plugins",
    "optuna.samplers",  # of hydra/sweeper=optuna
)
CALLBACK = "diffem.cli.sweep.Sweep"
# What runs a user's own shell lines or sets the jobs' environment: from the command line alone.
GIVEN = ("hydra.launcher.setup", "hydra.job.env_set")
FLAGS = ("-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info")
HELP = ("-h", "--help", "--hydra-help", "--version")
VALUED = ("-c", "--cfg", "-p", "--package", "-i", "--info")


def check_arguments(arguments: Sequence[str], conf: str, name: str) -> None:
    """Checks what a command's arguments compose to, before Hydra acts on them.

    Arguments:
        arguments: The command's arguments.
        conf: The folder of the configuration.
        name: The name of its first file.

    Raises:
        UserError: If a flag or a `_target_` is not allowed, or a value is of another kind than the
            chosen files have in its place.
    """
    overrides, skip = [], False
    for argument in arguments:
        if argument in HELP:
            return
        if skip or argument in FLAGS:
            skip = argument in VALUED
        elif argument.startswith("-"):
            raise UserError(f"{argument} is not a flag of this command; it has {', '.join(FLAGS)}")
        else:
            overrides.append(argument)
    with initialize_config_dir(conf, version_base="1.3"):
        for chosen in _without_sweeps(overrides):
            groups = list(_groups(chosen, Path(conf)))
            cfg = compose(name, chosen, return_hydra_config=True)
            check_hydra(OmegaConf.to_container(cfg.hydra, resolve=False), overrides)
            with open_dict(cfg):
                del cfg["hydra"]
            given = OmegaConf.to_container(cfg, resolve=False)
            check_targets(given)
            files = OmegaConf.to_container(compose(name, groups), resolve=False)
            assert isinstance(given, dict) and isinstance(files, dict)
            check_types(given, files)


def check_hydra(hydra: Any, overrides: Sequence[str]) -> None:  # noqa: ANN401
    """Checks Hydra's own node, a container of plain types.

    Raises:
        UserError: If it would build, import or run what is neither allowed nor on the command
            line.
    """
    for where, target in _found(hydra, "_target_", "hydra"):
        if target != CALLBACK:
            _check_own(where, target, PLUGINS)
    if space := hydra["sweeper"].get("custom_search_space"):  # Optuna's sweeper imports it
        raise UserError(f"hydra.sweeper.custom_search_space={space} is not allowed; leave it null")
    for key in GIVEN:
        _, node, name = key.split(".")
        if hydra[node].get(name) and not any(o.lstrip("+").startswith(key) for o in overrides):
            raise UserError(f"{key} is taken from the command line alone, not from a file")


def check_targets(config: Any) -> None:  # noqa: ANN401 - a container of plain types
    """Checks every `_target_` in a configuration.

    Raises:
        UserError: If one is not in the allow list, or leads out of it.
    """
    for where, flag in _found(config, "_partial_"):
        if not isinstance(flag, bool):
            raise UserError(f"{where} must be true or false, got {flag!r}")
    for where, target in _found(config, "_target_"):
        if target not in NAMES:
            _check_own(where, target, PARTS)


def _check_own(where: str, target: str, packages: Sequence[str]) -> None:
    """Refuses what is not one of the packages' own classes and functions."""
    _check_prefix(where, target, packages)
    package = next(p for p in packages if target.startswith(f"{p}."))
    try:
        found = get_object(target)
    except Exception as error:
        raise UserError(f"{where}={target}: there is no such thing ({error})") from error
    # A module's own imports can be reached by dots: diffem.storage.store.shutil.rmtree.
    if not callable(found) or not f"{getattr(found, '__module__', '')}.".startswith(f"{package}."):
        raise UserError(f"{where}={target} is not one of {package}'s own; it is not built")


def _check_prefix(where: str, target: object, prefixes: Iterable[str]) -> None:
    if not isinstance(target, str) or not target.startswith(tuple(f"{p}." for p in prefixes)):
        raise UserError(
            f"{where}={target} is not allowed; a _target_ begins with {', '.join(prefixes)}"
        )


def _found(node: object, wanted: str, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields where a key stands in a configuration, and each of its values."""
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{where}.{key}" if where else str(key)
            if key == wanted:
                yield name, value
            else:
                yield from _found(value, wanted, name)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _found(value, wanted, f"{where}.{i}")


def _groups(overrides: Sequence[str], conf: Path) -> Iterator[str]:
    """Yields the overrides that choose files, and those of Hydra's own node.

    Raises:
        UserError: If a choice is no name.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if (folder := conf / key).is_dir() and not override.is_delete():
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) for name in names):
                known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
                raise UserError(f"{override.input_line} is not a choice; {key} can be: {known}")
        if folder.is_dir() or key.startswith("hydra"):
            yield str(override.input_line)


def _without_sweeps(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yields overrides in which each sweep has one of its values, until each value was in one."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plain = [o.input_line for o in parsed if not o.is_sweep_override()]
    sweeps = [
        [f"{o.get_key_element()}={value}" for value in _values(o)]
        for o in parsed
        if o.is_sweep_override()
    ]
    first = [values[0] for values in sweeps]
    yield [str(o) for o in (*plain, *first)]
    for i, values in enumerate(sweeps):
        for value in values[1:]:
            yield [str(o) for o in (*plain, *first[:i], value, *first[i + 1 :])]


def _values(override: Override) -> Iterator[str]:
    """Yields the values of a sweep; of an interval, which has no list of them, the ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        yield from (str(value.start), str(value.end))
    else:
        yield from override.sweep_string_iterator()
