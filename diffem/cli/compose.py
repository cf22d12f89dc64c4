"""Composes the configuration, and checks it before anything is built or written."""

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError

from diffem.cli.composition import (
    CONF,
    check_overrides,
    compose,
    composed_once,
    is_hydra,
    is_hydra_choice,
    override_key,
    plain,
)
from diffem.config.allow_list import ALLOWED, check_targets
from diffem.config.build import build
from diffem.config.extras import check_extras, check_plugins
from diffem.config.hydra_node import check_hydra
from diffem.config.interpolation import check_interpolations, expanded
from diffem.config.paths import quote_paths
from diffem.config.secrets import redact_config
from diffem.config.trainer import check_strategy, check_trainer
from diffem.config.trust import SEARCH_PATH, package_folders, trusted_packages, with_search_path
from diffem.config.types import check_types, type_name
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES, check
from diffem.runtime.rank import external_processes

MEASUREMENTS = "diffem.data.MeasurementFiles"
OPERATOR = (  # parameters of corruptions that a user's own data come with
    *("angle", "angles", "coils", "factor", "fraction", "gamma", "high", "kernel", "length"),
    *("levels", "low", "masks", "quality", "rows", "sigma"),
)
SIMULATED = {"coils": "your coils' maps", "masks": "your masks' phases"}
"""The keys that a number simulates, and what a file of a user's own holds."""
SCALED = ("corruption.high", "corruption.low")
IMAGE_UNITS = "; it is on the scale on which dataset.range is [-1, 1]"
NOISE_UNITS = "; noise is in the units of the measurements"
LEVELS = ("std", "photons", "speckle")  # of the noise
FOREIGN = ("m_step.optimizer", "prior", "sampler", "schedule")  # do not check numbers themselves
SWEEP = ("-m", "--multirun")
FLAGS = (*SWEEP, "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info")
LARGEST_IMAGE = 2**26  # numbers; a chunk of them is in memory at once
HELP = ("-h", "--help", "--hydra-help", "--version")
FLAGS_WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-i", "--info")


def complete(arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments, and the search path of the packages that they trust.

    Raises:
        UserError: If a trusted package is not found, or has a choice of a name that diffem has.
    """
    check_overrides(arguments)
    return with_search_path(arguments, conf_folders(arguments)[1:])


def conf_folders(arguments: Iterable[str]) -> list[Path]:
    """Returns the folders of choices: conf/ of diffem and of the packages that are trusted.

    Raises:
        UserError: If a trusted package is not found, or has a choice of a name that is taken.
    """
    folders = [CONF]
    for package in package_folders(trusted_packages(arguments)):
        folder = package / "conf"
        for file in folder.rglob("*.yaml"):
            name = file.relative_to(folder)
            if taken := [other for other in folders if (other / name).exists()]:
                raise UserError(f"{file} has the name of {taken[0] / name}; give it another name")
        folders += [folder] if folder.is_dir() else []
    return folders


def check_arguments(arguments: Sequence[str]) -> DictConfig:
    """Checks a command's flags, and what its overrides compose to, before Hydra acts on them.

    Of a sweep, each value is checked, but not each combination. Nothing is imported or built.

    Arguments:
        arguments: The command's arguments.

    Returns:
        What they compose to, with Hydra's own node; of a sweep, with the first of its values.

    Raises:
        UserError: If a flag or a `_target_` is not allowed, a package is not installed, or a value
            has another type than in the chosen files.
        HydraException: If the overrides do not compose.
    """
    overrides, skip, helps = [], False, False
    for argument in arguments:
        if argument in HELP:
            helps = True
        elif skip or argument in FLAGS:
            skip = argument in FLAGS_WITH_VALUE
        elif argument.startswith("-"):
            raise UserError(f"{argument} is not a flag of this command; it has {', '.join(FLAGS)}")
        else:
            overrides.append(argument)
    check_overrides(overrides)
    check_plugins(overrides)
    trust = trusted_packages(overrides)
    first, *others = _without_sweeps(overrides)
    cfg = _checked_composition(first, trust, values=not helps)
    for chosen in others:
        _checked_composition(chosen, trust, values=not helps)
    return cfg


def _checked_composition(
    overrides: Sequence[str], trust: Sequence[str], *, values: bool
) -> DictConfig:
    """Returns what overrides without sweeps compose to, with Hydra's own node.

    Arguments:
        overrides: The overrides.
        trust: The packages that they trust.
        values: Whether types and packages are checked as well, which a text of help does not need.

    Raises:
        UserError: If it is refused.
        HydraException: If the overrides do not compose.
    """
    groups = tuple(_groups(overrides))
    cfg = compose(overrides, with_hydra=True)
    own = [o for o in overrides if is_hydra(o) and not _is_search_path(o)]
    given = plain(cfg)
    check_hydra(
        given.pop("hydra"),
        default=composed_once(tuple(o for o in own if is_hydra_choice(o)))["hydra"],
        command=composed_once(tuple(own))["hydra"],
        overrides=overrides,
    )
    check_interpolations(given)
    if given["trust"] != list(trust):
        raise UserError(
            f"trust={given['trust']} is in a file, and taken from the command line alone; "
            "remove it from the file"
        )
    if isinstance(trainer := given.get("trainer"), dict) and "strategy" in trainer:
        check_strategy(trainer["strategy"])  # says more than the list of allowed targets
    check_targets(given, trust=trust)
    check_targets(expanded(given), trust=trust)
    if values:
        own_files = not any(map(_is_search_path, groups))
        files = composed_once(groups) if own_files else plain(compose(groups))
        check_extras(given)
        check_types(given, files)
    return cfg


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration that overrides compose to, after `check_arguments`.

    Arguments:
        overrides: As on the command line of `diffem train`, without sweeps.

    Raises:
        UserError: If it is refused.
        HydraException: If the overrides do not compose.
    """
    cfg = _compose_checked(overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def compose_run(overrides: Sequence[str], run_dir: Path) -> DictConfig:
    """Returns the configuration of a run in this process, as Hydra's main would set it up.

    `HydraConfig` has the choices and the overrides of this run afterwards.

    Arguments:
        overrides: As on the command line of `diffem train`, without `run_dir` and sweeps.
        run_dir: The run directory.

    Raises:
        UserError: If the configuration is refused.
        HydraException: If the overrides do not compose.
    """
    cfg = _compose_checked(overrides)
    cfg.run_dir = str(run_dir)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(run_dir)
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg


def _compose_checked(overrides: Sequence[str]) -> DictConfig:
    """Returns what overrides compose to, with Hydra's own node, after `check_arguments`."""
    arguments = complete(quote_paths(overrides))
    cfg = check_arguments(arguments)
    if sorted([*cfg.hydra.overrides.task, *cfg.hydra.overrides.hydra]) != sorted(arguments):
        return compose(arguments, with_hydra=True)  # refuses sweeps and flags
    return cfg


def check_config(cfg: DictConfig) -> None:
    """Checks the values that no part of the configuration of a training checks by itself.

    Arguments:
        cfg: The composed configuration.

    Raises:
        UserError: If a value is refused by `check_values`, a key of the trainer is not known to
            keep the laws, this machine lacks the devices, or several processes would each choose
            a run directory.
    """
    check_trainer(_plain(cfg.trainer))
    check_values(cfg)
    if (external_processes() or 1) > 1 and "${now:" in str(plain(cfg)["run_dir"]):
        raise UserError(
            "run_dir must be given where torchrun or srun starts the processes, or each would "
            "name its own by the time: run_dir=runs/NAME"
        )


def check_values(cfg: DictConfig) -> None:
    """Checks the values that no part of the configuration checks by itself, but for the trainer.

    The parts that need no Lightning are built, so that they refuse their own values. Lightning
    takes seconds to import.

    Arguments:
        cfg: The composed configuration, also of a finished run, which may have been trained on
            devices that this machine lacks.

    Raises:
        UserError: If a number is out of its range, or a part refuses its values.
    """
    for part in (*FOREIGN, "em"):  # em's class checks them too, but its import takes seconds
        for key, value in (_plain(OmegaConf.select(cfg, part)) or {}).items():
            if f"{part}.{key}" in RANGES:
                check(f"{part}.{key}", value)
    if cfg.sampler.get("order", 0) > cfg.sampler.steps:
        raise UserError(
            f"sampler.order must be at most sampler.steps={cfg.sampler.steps}, got "
            f"{cfg.sampler.order}: a step uses the steps before it"
        )
    check("seed", cfg.seed)
    shape = _plain(cfg.dataset.shape)
    if shape is not None and not shape:
        raise UserError("dataset.shape must have at least one side, as in [1,8,8], got []")
    if shape is not None:  # null: that of the files
        check("dataset.shape", shape)
    if (numbers := math.prod(shape or ())) > LARGEST_IMAGE:
        raise UserError(
            f"dataset.shape={shape} are {numbers} numbers an image, and at most {LARGEST_IMAGE} "
            "are allowed; give smaller images"
        )
    levels = [float(cfg.schedule[k]) for k in ("sigma_min", "sigma_max") if k in cfg.schedule]
    if levels != sorted(set(levels)):
        raise UserError(f"schedule.sigma_min must be below schedule.sigma_max, got {levels}")
    for name, logger in cfg.logger.items():
        if not OmegaConf.is_dict(logger) or "_target_" not in logger:
            raise UserError(f"logger.{name} must have a _target_, got {logger}")
        check_logger(name, OmegaConf.to_container(logger, resolve=True), Path(str(cfg.run_dir)))
        if "flush_logs_every_n_steps" in logger:
            check("logger.*.flush_logs_every_n_steps", logger.flush_logs_every_n_steps)
    if cfg.dataset.shape is not None:
        check_assumed(cfg)
    build(cfg.schedule, "schedule")


def check_logger(name: object, logger: Any, run_dir: Path) -> None:  # noqa: ANN401
    """Checks that a logger of the registry writes in the run directory.

    Arguments:
        name: The logger's name, a key of `logger`.
        logger: Its settings, in plain types, resolved.
        run_dir: The run directory.

    Raises:
        UserError: If a path leads out of it.
    """
    if logger["_target_"] not in ALLOWED["logger.*"]:
        return  # of a trusted package
    # Lightning puts name, version and sub_dir under save_dir.
    inner = [str(logger.get(key) or "") for key in ("name", "version", "sub_dir")]
    below = inner if logger["_target_"].startswith("lightning.") else []
    root = os.path.abspath(run_dir)
    for key in ("path", "save_dir", "metrics", "panels"):
        if key in logger:
            path = os.path.abspath(Path(str(logger[key]), *below))
            if not Path(path).is_relative_to(root) or (path == root and key != "save_dir"):
                raise UserError(
                    f"logger.{name}.{key}={logger[key]} must be in the run directory; start it by "
                    "${run_dir}/, and let name and version lead nowhere else"
                )


def check_assumed(cfg: DictConfig) -> None:
    """Checks the corruption, and that it can be assumed to be what `assumed` says.

    Raises:
        UserError: If a channel cannot be built, or a measurement would have another shape.
    """
    from torch import Generator, zeros

    from diffem.corruption import LinearChannel
    from diffem.result.parts import build_channel

    shapes, known = [], []
    for node in (cfg.corruption, assumed_corruption(cfg)):
        channel = build_channel(node, cfg.dataset.shape)
        drawn = channel.draw(zeros(1, *channel.shape), Generator().manual_seed(0))
        shapes.append([list(field.shape[1:]) for field in drawn])
        if isinstance(channel, LinearChannel):
            parameters = (channel.forward_operator.parameters, channel.noise.parameters)
            known.append({p.name: p.known for part in parameters for p in part.values()})
    for name in known[0] if known else ():
        if known[0][name] is not None and known[1].get(name, 0.0) is None:
            key = name.removeprefix("corruption.")
            raise UserError(
                f"assumed.{key} must be one number, as {name} is: a range is for measurements of "
                "which each has its own"
            )
    if shapes[0] != shapes[1]:
        keys = ", ".join(f"assumed.{key}" for key in cfg.assumed)
        raise UserError(
            f"{keys} must leave the shapes of measurement, operator and noise as they are, "
            f"{shapes[0]}, got {shapes[1]}; leave it out"
        )


def check_channel_given(cfg: DictConfig) -> None:
    """Checks that the channel of a user's own measurements was given, not left at its defaults.

    The defaults are those of benchmarks: a noise of 0.5 grey values would be silently wrong.

    Raises:
        UserError: If the corruption, its noise level or a parameter of its operator was not given.
    """
    if cfg.dataset.get("_target_") != MEASUREMENTS or is_given("experiment"):
        return
    own = str(cfg.corruption.get("_target_", "")).startswith("diffem.")
    if not is_given("corruption"):
        raise UserError(
            "corruption must be given with dataset=measurements: what they went through, as in "
            "corruption=denoising"
        )
    operator = [f"corruption.{k}" for k in OPERATOR if own and k in cfg.corruption]
    if own and not is_chosen("corruption.parts"):
        parts = enumerate(cfg.corruption.get("parts") or ())
        operator += [
            f"corruption.parts.{i}.{k}" for i, part in parts for k in OPERATOR if k in part
        ]
    noise = [f"corruption.noise.{k}" for k in LEVELS if k in (cfg.corruption.get("noise") or {})]
    for key in (*operator, *noise):
        if not is_given(key):
            units = NOISE_UNITS if key in noise else IMAGE_UNITS if key in SCALED else ""
            raise UserError(
                f"{key} must be given with dataset=measurements, {key}=VALUE: the file's "
                f"{OmegaConf.select(cfg, key)} is that of a benchmark{units}"
            )

    for part in (cfg.corruption, *(cfg.corruption.get("parts") or ())) if own else ():
        for key, held in SIMULATED.items():
            if isinstance(number := part.get(key), int):
                raise UserError(
                    f"corruption.{key}={number} simulates the {key} of a benchmark; with "
                    f"dataset=measurements give the path of a .npy file of {held}"
                )


def assumed_corruption(cfg: DictConfig) -> DictConfig:
    """Returns the configuration of the corruption as the method assumes it.

    Raises:
        UserError: If `assumed` has a key that the corruption does not have.
    """
    try:
        merged = OmegaConf.merge(cfg.corruption, cfg.assumed)
    except ConfigKeyError as error:
        known = ", ".join(str(key) for key in error.parent_node if key != "_target_")
        key = str(error.full_key).removeprefix("corruption.")
        raise UserError(
            f"assumed.{key} is not a key of the corruption; allowed: {known}"
        ) from error
    assert isinstance(merged, DictConfig)
    check_targets({"corruption": _plain(merged)}, trust=list(cfg.trust))
    return merged


def is_given(group: str) -> bool:
    """Returns whether the command line chooses a group or sets a key of it."""
    return any(key == group or key.startswith(f"{group}.") for key in _given_keys())


def is_chosen(key: str) -> bool:
    """Returns whether the command line names a group or a key itself, not a key below it."""
    return key in _given_keys()


def _given_keys() -> list[str]:
    given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [override_key(str(o)) for o in given or ()]


def describe_run(cfg: DictConfig) -> dict[str, Any]:
    """Returns the head of a run's summary: its choices, seed and devices.

    Arguments:
        cfg: The configuration of the run that Hydra has started.
    """
    chosen = HydraConfig.get().runtime.choices
    groups = {group: chosen[group] for group in ("dataset", "corruption", "method", "init")}
    clean = cfg.method.supervised or chosen["init"] == "clean" or cfg.m_step.clean is not None
    devices = {key: cfg.trainer[key] for key in ("accelerator", "devices", "num_nodes")}
    return {**groups, "clean_images": clean, "seed": cfg.seed, "devices": devices}


def public_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns a configuration for loggers: resolved, without secrets and the environment."""
    redacted = redact_config(OmegaConf.to_container(cfg, resolve=False))
    plain = OmegaConf.to_container(OmegaConf.create(_escape_environment(redacted)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def sibling_keys(key: str) -> str:
    """Returns the keys beside a key, under the choices on the command line, as one text."""
    cfg = _chosen_files()
    parent = key.rpartition(".")[0]
    while parent and not OmegaConf.is_dict(OmegaConf.select(cfg, parent, default=None)):
        parent = parent.rpartition(".")[0]
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return ", ".join(f"{parent}.{k}" if parent else str(k) for k in node if k != "_target_")


def merge_fault(override: str) -> str | None:
    """Returns why an override does not merge into the chosen files, or None if it is not known.

    Arguments:
        override: KEY=VALUE, as the command line has it.
    """
    key, value = override_key(override), override.partition("=")[2]
    node, found, left = _chosen_files(), "", key.split(".")
    while left and OmegaConf.is_dict(node):
        node = node.get(left[0])
        found = f"{found}.{left.pop(0)}" if found else left.pop(0)
    if OmegaConf.is_config(node) and not left:
        return f"{key} must be {type_name(key, _plain(node))}, got {value}"
    if not OmegaConf.is_list(node):
        return None
    change = f"change one by {found}.0=VALUE, or " if len(node) else ""
    return (
        f"{override} changes no entry of the list {found}, which has {len(node)}; {change}give "
        f"the whole list, {found}=[…]"
    )


def _chosen_files() -> DictConfig:
    """Returns what the choices on the command line compose to."""
    given = [arg for arg in sys.argv[1:] if re.fullmatch(r"[\w/]+=[\w-]+", arg)]
    choices = [choice for choice in given if (CONF / choice.partition("=")[0]).is_dir()]
    searched = [arg for arg in sys.argv[1:] if arg.startswith(f"{SEARCH_PATH}=")]
    return compose([*choices, *searched])


def _escape_environment(value: Any) -> Any:  # noqa: ANN401 - a container of plain types
    """Returns a configuration in which interpolations of the environment stay unresolved."""
    if isinstance(value, dict):
        return {k: _escape_environment(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escape_environment(v) for v in value]
    from_environment = isinstance(value, str) and "oc.env" in value
    return value.replace("${", "\\${") if from_environment else value


def _plain(node: Any) -> Any:  # noqa: ANN401
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _is_search_path(override: str) -> bool:
    return override.startswith(f"{SEARCH_PATH}=")


def _groups(overrides: Sequence[str]) -> Iterator[str]:
    """Yields the overrides that choose files, and those of Hydra's own node.

    Raises:
        UserError: If a choice is no name.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if (folder := CONF / key).is_dir() and not override.is_delete():
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) for name in names):
                known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
                raise UserError(f"{override.input_line} is not a choice; {key} can be: {known}")
        if folder.is_dir() or key.startswith("hydra"):
            yield str(override.input_line)


def _without_sweeps(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yields lists of overrides without sweeps that together contain each value of each sweep."""
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
    """Yields the values of a sweep; for an interval, which has no list of them, its ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        yield from (str(value.start), str(value.end))
    else:
        yield from override.sweep_string_iterator()
