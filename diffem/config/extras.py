"""Optional packages: which choice of the configuration needs which of them.

An extra of pyproject.toml holds what the default run does not need. A choice whose package is not
installed is refused when the configuration is composed.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import NamedTuple

from diffem.runtime.errors import UserError


class Extra(NamedTuple):
    """A package that is optional."""

    name: str
    """The extra of pyproject.toml that installs it."""
    module: str
    """The name that it is imported by."""


TARGETS = {  # what needs a package, by the full name of what is built
    "diffem.data.HubImages": Extra("hub", "datasets"),
    "diffem.data.Manifold": Extra("manifold", "ot"),  # the Sinkhorn divergence of vectors
    "diffem.logging.wandb.WandbLogger": Extra("wandb", "wandb"),
    "diffem.metric.DINOv2": Extra("metrics", "timm"),
    "diffem.metric.Inception": Extra("metrics", "torch_fidelity"),
    "lightning.pytorch.loggers.TensorBoardLogger": Extra("tensorboard", "tensorboard"),
    "lightning.pytorch.loggers.WandbLogger": Extra("wandb", "wandb"),
}
PLUGINS = {  # Hydra's launchers and sweepers, by the choice on the command line
    "hydra/launcher=joblib": Extra("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=submitit_local": Extra("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_slurm": Extra("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/sweeper=optuna": Extra("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}


def check_target_extras(targets: Iterable[tuple[str, str]]) -> None:
    """Checks that what a configuration builds has its packages.

    Arguments:
        targets: The key and the value of each `_target_`.

    Raises:
        UserError: If a package is not installed.
    """
    for where, target in targets:
        if target in TARGETS:
            _check_installed(f"{where}={target}", TARGETS[target])


def check_plugin_extras(overrides: Iterable[str]) -> None:
    """Checks that the launcher and the sweeper on a command line are installed.

    Raises:
        UserError: If one is not.
    """
    for override in overrides:
        if override in PLUGINS:
            _check_installed(override, PLUGINS[override])


def _check_installed(what: str, extra: Extra) -> None:
    if not _is_installed(extra.module):
        raise UserError(
            f"{what} needs the package {extra.module.rpartition('.')[2]}, which is not installed: "
            f"pip install -c constraints.txt -e '.[{extra.name}]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
