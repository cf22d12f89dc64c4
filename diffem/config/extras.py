"""Optional packages, and the choices of the configuration that need them.

What the default run does not need is in extras of pyproject.toml. A choice whose package is not
installed is refused when the configuration is composed, before anything is written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffem.config.allow_list import targets
from diffem.config.paths import quoted, unquoted
from diffem.runtime.errors import UserError
from diffem.runtime.extras import Extra, check_installed

DATASETS = Extra("datasets", "datasets", "hub")
WANDB = Extra("wandb", "wandb", "wandb")
WORKSPACES = Extra("wandb-workspaces", "wandb_workspaces", "dashboard")  # `diffem dashboard`
SUBMITIT = Extra("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher", "submitit")
TARGETS = {  # by the full name of what is built
    "diffem.corruption.DeepInverse": Extra("deepinv", "deepinv", "deepinv"),
    "diffem.data.HubImages": DATASETS,
    "diffem.logging.wandb.WandbLogger": WANDB,
    "diffem.metric.DINOv2": Extra("timm", "timm", "metrics"),
    "diffem.metric.Inception": Extra("torch-fidelity", "torch_fidelity", "metrics"),
    "lightning.pytorch.loggers.TensorBoardLogger": Extra(
        "tensorboard", "tensorboard", "tensorboard"
    ),
}
OPTUNA = "hydra/sweeper=optuna"
PLUGINS = {  # of Hydra, by the choice on the command line
    "hydra/launcher=joblib": Extra(
        "hydra-joblib-launcher", "hydra_plugins.hydra_joblib_launcher", "joblib"
    ),
    "hydra/launcher=submitit_local": SUBMITIT,
    "hydra/launcher=submitit_slurm": SUBMITIT,
    OPTUNA: Extra("hydra-optuna-sweeper", "hydra_plugins.hydra_optuna_sweeper", "optuna"),
}
ONNX = (  # of `diffem export --onnx`: what writes it, what torch writes it by, what checks it
    Extra("onnx", "onnx", "onnx"),
    Extra("onnxscript", "onnxscript", "onnx"),
    Extra("onnxruntime", "onnxruntime", "onnx"),
)
VECTORS = Extra("POT", "ot", "vectors")  # the Sinkhorn divergence, a score of vectors


def check_extras(config: Mapping[Any, Any]) -> None:
    """Checks that the packages of a configuration's choices are installed.

    Arguments:
        config: The configuration without Hydra's node, in plain types.

    Raises:
        UserError: If one is not; the message has the command that installs it.
    """
    for where, target in targets(config):
        if target in TARGETS:
            check_installed(f"{where}={target}", TARGETS[target])
    dataset = config.get("dataset")
    shape = dataset.get("shape") if isinstance(dataset, dict) else None
    if isinstance(shape, list) and len(shape) == 1:
        check_installed(f"dataset.shape={shape} (vectors)", VECTORS)


def check_plugins(overrides: Sequence[str]) -> None:
    """Checks that the launcher and the sweeper on a command line are installed.

    Arguments:
        overrides: The overrides of the command line, with paths quoted.

    Raises:
        UserError: If one is not; the message has the command that installs it. Or if Optuna's
            sweeper would misread a value.
    """
    if OPTUNA in overrides:
        for override in overrides:
            key, _, value = override.partition("=")
            if (text := unquoted(value)) != value and quoted(text) != text:
                raise UserError(
                    f"{key}={text} cannot be given with {OPTUNA}, which takes quotes away; use a "
                    "name of letters, digits and . _ - + @"
                )
    for override in overrides:
        if override in PLUGINS:
            check_installed(override, PLUGINS[override])
