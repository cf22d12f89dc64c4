"""Which classes and functions a configuration may build.

Hydra imports and calls whatever a `_target_` names, on the command line or in an experiment file
from elsewhere, and its own block list is no boundary. Here every `_target_` is compared with a
list of full names before anything is imported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffem.config.trust import find_package
from diffem.runtime.errors import UserError

ALLOWED: Mapping[str, tuple[str, ...]] = {  # by top-level key of the configuration
    "blind": ("diffem.em.Blind",),
    "corruption": (
        "diffem.corruption.Blur",
        "diffem.corruption.Denoising",
        "diffem.corruption.Downsample",
        "diffem.corruption.GaussianNoise",
        "diffem.corruption.Mask",
        "diffem.corruption.PoissonGaussianNoise",
        "diffem.corruption.PoissonNoise",
        "diffem.corruption.Projection",
    ),
    "dataset": (
        "diffem.data.Digits",
        "diffem.data.HubImages",
        "diffem.data.IdxImages",
        "diffem.data.Manifold",
        "diffem.data.MeasurementFiles",
    ),
    "em": ("diffem.em.EMSettings",),
    "init": (
        "diffem.em.init.FromCheckpoint",
        "diffem.em.init.FromClean",
        "diffem.em.init.FromMeasurement",
        "diffem.em.init.Gaussian",
    ),
    "logger": (
        "diffem.logging.jsonl.JSONLLogger",
        "diffem.logging.wandb.WandbLogger",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.CometLogger",
        "lightning.pytorch.loggers.LitLogger",
        "lightning.pytorch.loggers.MLFlowLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.loggers.WandbLogger",
    ),
    "m_step": (
        "diffem.denoiser.BetaMixture",
        "diffem.em.Augment",
        "diffem.em.Cosine",
        "diffem.em.Linear",
        "diffem.em.MStep",
        "torch.optim.ASGD",
        "torch.optim.Adadelta",
        "torch.optim.Adafactor",
        "torch.optim.Adagrad",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.Adamax",
        "torch.optim.Muon",
        "torch.optim.NAdam",
        "torch.optim.RAdam",
        "torch.optim.RMSprop",
        "torch.optim.Rprop",
        "torch.optim.SGD",
    ),
    "method": (
        "diffem.denoiser.Conditioning",
        "diffem.em.objective.Ambient",
        "diffem.em.objective.Recorrupted",
        "diffem.em.objective.Unconditional",
        "diffem.posterior.Conditional",
        "diffem.posterior.DPS",
        "diffem.posterior.DiffPIR",
        "diffem.posterior.Isotropic",
        "diffem.posterior.MMPS",
        "diffem.posterior.PiGDM",
        "diffem.posterior.PrincipalComponents",
        "diffem.posterior.Restoration",
        "diffem.posterior.SplitGibbs",
    ),
    "metric": (
        "diffem.metric.Classifier",
        "diffem.metric.DINOv2",
        "diffem.metric.Evaluation",
        "diffem.metric.Inception",
        "diffem.metric.LPIPS",
        "diffem.metric.PSNR",
        "diffem.metric.PixelFeatures",
        "diffem.metric.ResidualChi2",
        "diffem.metric.SSIM",
    ),
    "network": ("diffem.network.MLP", "diffem.network.UNet"),
    "sampler": (
        "azula.sample.DDIMSampler",
        "azula.sample.DDPMSampler",
        "azula.sample.EulerSampler",
        "azula.sample.HeunSampler",
        "azula.sample.ItoSampler",
        "azula.sample.PCSampler",
        "azula.sample.REABSampler",
        "azula.sample.vABSampler",
        "azula.sample.xEABSampler",
        "azula.sample.zABSampler",
        "azula.sample.zEABSampler",
    ),
    "schedule": (
        "azula.noise.CosineSchedule",
        "azula.noise.DecaySchedule",
        "azula.noise.RectifiedSchedule",
        "azula.noise.VESchedule",
        "azula.noise.VPSchedule",
    ),
    "trainer": ("lightning.Trainer", "lightning.pytorch.strategies.DDPStrategy"),
}
ALLOWED_HYDRA = (  # in Hydra's own node
    "diffem.cli.sweep.SweepCallback",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "optuna.samplers.CmaEsSampler",
    "optuna.samplers.GridSampler",
    "optuna.samplers.MOTPESampler",
    "optuna.samplers.NSGAIISampler",
    "optuna.samplers.RandomSampler",
    "optuna.samplers.TPESampler",
)
# These run a user's own shell lines or set the jobs' environment.
COMMAND_LINE_ONLY = ("hydra.launcher.setup", "hydra.job.env_set")


def check_targets(config: Any, *, trust: Sequence[str] = ()) -> None:  # noqa: ANN401
    """Checks every `_target_` in a configuration.

    Arguments:
        config: The configuration without Hydra's node, in plain types.
        trust: Packages from which everything may be built where something is built.

    Raises:
        UserError: If a `_target_` is neither in the list of its top-level key nor of a trusted
            package, or a `_partial_` is not a truth value.
    """
    for where, flag in _found(config, "_partial_"):
        if not isinstance(flag, bool):
            raise UserError(f"{where} must be true or false, got {flag!r}")
    for where, target in targets(config):
        key = where.partition(".")[0]
        # `assumed` holds keys of the corruption.
        allowed = ALLOWED.get("corruption" if key == "assumed" else key, ())
        root, dot, _ = str(target).partition(".")
        if not (allowed and dot and root in trust):
            _check_target(where, target, allowed, advice=bool(allowed))


def check_hydra(hydra: Any, overrides: Sequence[str]) -> None:  # noqa: ANN401
    """Checks Hydra's own node.

    Arguments:
        hydra: The node, in plain types.
        overrides: The overrides on the command line.

    Raises:
        UserError: If the node would build, import or run something that is neither allowed nor
            given on the command line.
    """
    for where, target in _found(hydra, "_target_", "hydra"):
        _check_target(where, target, ALLOWED_HYDRA)
    if space := hydra["sweeper"].get("custom_search_space"):  # Optuna's sweeper imports it
        raise UserError(f"hydra.sweeper.custom_search_space={space} is not allowed; leave it null")
    for key in COMMAND_LINE_ONLY:
        _, node, name = key.split(".")
        if hydra[node].get(name) and not any(o.lstrip("+").startswith(key) for o in overrides):
            raise UserError(f"{key} is taken from the command line alone, not from a file")


def targets(config: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yields the full key and the value of every `_target_` in a container of plain types."""
    yield from _found(config, "_target_")


def _check_target(
    where: str, target: object, allowed: Sequence[str], *, advice: bool = False
) -> None:
    if target not in allowed:
        known = ", ".join(allowed) or "nothing is built there"
        root = str(target).partition(".")[0]
        own = advice and _is_of_a_user(root)
        trust = f"; if {root} is a package that you trust, add trust=[{root}]" if own else ""
        raise UserError(f"{where}={target} is not allowed; allowed: {known}{trust}")


def _is_of_a_user(package: str) -> bool:
    """Returns whether there is a package that is neither Python's nor one of the lists here."""
    listed = {name.partition(".")[0] for names in ALLOWED.values() for name in names}
    others = {*listed, *(name.partition(".")[0] for name in ALLOWED_HYDRA)}
    if not package.isidentifier() or package in {*others, *sys.stdlib_module_names}:
        return False
    return find_package(package) is not None


def _found(node: object, wanted: str, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full key and the value of every occurrence of a key."""
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
