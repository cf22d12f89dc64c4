"""Which classes a configuration may build, at which place, and with which arguments.

Hydra imports and calls whatever a `_target_` names, on the command line, in an experiment file or
a run directory from elsewhere, and its own block list is no boundary. Here every `_target_` is
compared with a registry of full names before anything is imported: the classes that are meant to
be built at its place, and the arguments that a configuration may give to each.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffem.config.trust import find_package
from diffem.runtime.errors import UserError

Registry = Mapping[str, tuple[str, ...]]
"""The arguments of each class by its full name."""

_SAMPLER = ("bounds", "steps")
_MULTISTEP = (*_SAMPLER, "order")
_LOSS = ("foreach", "lr", "maximize", "weight_decay")  # of every optimizer but Muon
_ADAM = (*_LOSS, "betas", "capturable", "eps")
_CONDITIONING: Registry = {"diffem.denoiser.Conditioning": ("fuse", "maps")}
_METRICS: Registry = {
    "diffem.metric.LPIPS": ("required", "weights"),
    "diffem.metric.Outside": ("required",),
    "diffem.metric.PSNR": ("required",),
    "diffem.metric.ResidualChi2": ("required",),
    "diffem.metric.SSIM": ("required",),
}

_PARTS: Registry = {  # operators and distortions, which a corruption is made of
    "diffem.corruption.Blur": ("factor", "kernel_size", "sigma"),
    "diffem.corruption.DeepInverse": (
        *("arguments", "generator", "generator_arguments", "physics"),
    ),
    "diffem.corruption.Denoising": (),
    "diffem.corruption.Downsample": ("factor",),
    "diffem.corruption.Fourier": ("acceleration", "centre"),
    "diffem.corruption.Gamma": ("gamma",),
    "diffem.corruption.Impulse": ("fraction",),
    "diffem.corruption.JPEG": ("quality",),
    "diffem.corruption.Mask": ("rho",),
    "diffem.corruption.Mosaic": (),
    "diffem.corruption.MotionBlur": ("angle", "length"),
    "diffem.corruption.MultiCoil": ("acceleration", "centre", "coils"),
    "diffem.corruption.PointSpread": ("kernel",),
    "diffem.corruption.Projection": ("rows",),
    "diffem.corruption.Quantisation": ("levels",),
    "diffem.corruption.Radon": ("angles",),
    "diffem.corruption.Rician": (),
    "diffem.corruption.Saturation": ("high", "low"),
    "diffem.corruption.Weighting": ("ratio",),
}

_WHOLE: Registry = {  # corruptions that are made of parts, or are none
    "diffem.corruption.Composition": ("parts",),
    "diffem.corruption.PhaseRetrieval": ("masks",),
}

ALLOWED: Mapping[str, Registry] = {  # by place, the key of a node; * is any one part of a key
    "balance": {
        "diffem.em.Balance": (),
        "diffem.em.Dual": ("rate",),
        "diffem.em.Oversample": (),
    },
    "blind": {"diffem.em.Blind": ("iterations", "samples", "widen")},
    "corruption": {
        name: (*keys, "learn", "noise") for name, keys in sorted({**_PARTS, **_WHOLE}.items())
    },
    "corruption.noise": {
        "diffem.corruption.GaussianNoise": ("std",),
        "diffem.corruption.PoissonGaussianNoise": ("background", "photons", "std"),
        "diffem.corruption.PoissonNoise": ("background", "photons"),
        "diffem.corruption.SpeckleNoise": ("speckle", "std"),
    },
    "corruption.parts.*": _PARTS,
    "dataset": {
        "diffem.data.Digits": ("groups", "only", "shape", "thin", "train"),
        "diffem.data.HubImages": (
            *("column", "crop", "label", "limits", "path", "range", "shape", "splits"),
        ),
        "diffem.data.IdxImages": (
            *("groups", "heldout", "only", "path", "range", "shape", "thin", "train"),
        ),
        "diffem.data.Manifold": ("frequencies", "heldout", "shape", "smoothness", "train"),
        "diffem.data.MeasurementFiles": (
            *("axes", "dims", "groups", "heldout", "key", "limit", "patch", "path", "range"),
            "shape",
        ),
    },
    "em": {
        "diffem.em.EMSettings": (
            *("batch_size", "chunk_size", "epochs_per_round", "first_steps", "guard"),
            *("keep_rounds", "nfe", "refresh", "relax", "restart", "rounds", "seconds"),
            *("steps_per_epoch", "steps_per_round", "stop", "warm_start"),
        )
    },
    "em.guard": {"diffem.em.Guard": ("hidden", "measurements")},
    "em.stop": {"diffem.em.Plateau": ("figure", "patience")},
    "init": {
        "diffem.em.init.FromCheckpoint": ("path",),
        "diffem.em.init.FromClean": ("count",),
        "diffem.em.init.FromMeasurement": (),
        "diffem.em.init.Gaussian": ("iterations", "rank", "samples", "variance"),
        "diffem.em.init.Mixture": (
            *("components", "iterations", "rank", "samples", "shrinkage", "variance"),
        ),
    },
    "logger.*": {
        "diffem.logging.jsonl.JSONLLogger": ("path",),
        "diffem.logging.wandb.WandbLogger": (
            *("artifacts", "metrics", "name", "panels", "project", "save_dir"),
        ),
        "lightning.pytorch.loggers.CSVLogger": (
            *("flush_logs_every_n_steps", "name", "prefix", "save_dir", "version"),
        ),
        "lightning.pytorch.loggers.TensorBoardLogger": (
            *("default_hp_metric", "name", "prefix", "save_dir", "sub_dir", "version"),
        ),
    },
    "m_step": {
        "diffem.em.MStep": (
            *("augment", "clean", "ema_decay", "optimizer", "rollbacks", "schedule", "times"),
        )
    },
    "m_step.augment": {"diffem.em.Augment": ("flip", "hue", "rotate", "saturation", "zoom")},
    "m_step.clean": {"diffem.em.CleanShare": ("count", "path", "share")},
    "m_step.optimizer": {
        "torch.optim.ASGD": (*_LOSS, "alpha", "capturable", "lambd", "t0"),
        "torch.optim.Adadelta": (*_LOSS, "capturable", "eps", "rho"),
        "torch.optim.Adafactor": (*_LOSS, "beta2_decay", "d", "eps"),
        "torch.optim.Adagrad": (*_LOSS, "eps", "fused", "initial_accumulator_value", "lr_decay"),
        "torch.optim.Adam": (*_ADAM, "amsgrad", "decoupled_weight_decay", "fused"),
        "torch.optim.AdamW": (*_ADAM, "amsgrad", "fused"),
        "torch.optim.Adamax": _ADAM,
        "torch.optim.Muon": (
            *("adjust_lr_fn", "eps", "lr", "momentum", "nesterov", "ns_coefficients"),
            *("ns_steps", "weight_decay"),
        ),
        "torch.optim.NAdam": (*_ADAM, "decoupled_weight_decay", "momentum_decay"),
        "torch.optim.RAdam": (*_ADAM, "decoupled_weight_decay"),
        "torch.optim.RMSprop": (*_LOSS, "alpha", "capturable", "centered", "eps", "momentum"),
        "torch.optim.Rprop": (*("capturable", "etas", "foreach", "lr", "maximize", "step_sizes"),),
        "torch.optim.SGD": (*_LOSS, "dampening", "fused", "momentum", "nesterov"),
    },
    "m_step.schedule": {
        "diffem.em.Cosine": ("decay", "final", "warmup"),
        "diffem.em.Linear": ("decay", "final", "warmup"),
    },
    "m_step.times": {"diffem.denoiser.BetaMixture": ("components",)},
    "memory": {
        "diffem.em.Generative": ("fraction", "path", "size"),
        "diffem.em.Memory": ("path",),
        "diffem.em.Replay": ("fraction", "path", "size"),
    },
    "method.condition": _CONDITIONING,
    "method.objective": {
        "diffem.em.objective.Ambient": ("delta",),
        "diffem.em.objective.Recorrupted": ("condition", "fresh", "imputed", "p_uncond"),
        "diffem.em.objective.Reflected": ("condition", "fresh", "imputed", "p_uncond"),
        "diffem.em.objective.Unconditional": (),
    },
    "method.objective.condition": _CONDITIONING,
    "method.posterior": {
        "diffem.posterior.Conditional": ("condition",),
        "diffem.posterior.DPS": ("zeta",),
        "diffem.posterior.DiffPIR": ("iterations", "lmbda"),
        "diffem.posterior.MMPS": ("iterations", "solver"),
        "diffem.posterior.PiGDM": ("covariance",),
        "diffem.posterior.Reflected": ("condition",),
        "diffem.posterior.Restoration": (),
        "diffem.posterior.SplitGibbs": ("coupling", "sweeps"),
    },
    "method.posterior.condition": _CONDITIONING,
    "method.posterior.covariance": {
        "diffem.posterior.Isotropic": ("variance",),
        "diffem.posterior.PrincipalComponents": ("rank",),
    },
    "metric": {
        "diffem.metric.Evaluation": (
            *("features", "heldout", "lpips", "metrics", "prior", "samples", "subset"),
        )
    },
    "metric.features.*": {
        "diffem.metric.Classifier": ("path",),
        "diffem.metric.DINOv2": ("model", "weights"),
        "diffem.metric.Inception": ("weights",),
        "diffem.metric.PixelEnergy": (),
        "diffem.metric.PixelFeatures": ("shape",),
    },
    "metric.lpips": {"diffem.metric.LPIPS": ("required", "weights")},
    "metric.metrics.*": _METRICS,
    "network": {
        "diffem.network.MLP": ("depth", "embedding", "width"),
        "diffem.network.UNet": ("attention", "blocks", "channels", "dropout", "heads"),
    },
    "sampler": {
        "azula.sample.DDIMSampler": (*_SAMPLER, "eta"),
        "azula.sample.DDPMSampler": _SAMPLER,
        "azula.sample.EulerSampler": _SAMPLER,
        "azula.sample.HeunSampler": _SAMPLER,
        "azula.sample.ItoSampler": (*_SAMPLER, "eta", "temperature"),
        "azula.sample.PCSampler": (*_SAMPLER, "corrections", "delta"),
        "azula.sample.REABSampler": _MULTISTEP,
        "azula.sample.vABSampler": _MULTISTEP,
        "azula.sample.xEABSampler": _MULTISTEP,
        "azula.sample.zABSampler": _MULTISTEP,
        "azula.sample.zEABSampler": _MULTISTEP,
        "diffem.posterior.OneStepSampler": ("bounds", "sigma"),
        "diffem.posterior.ReflectedSampler": ("steps",),
        "diffem.posterior.SDESampler": _SAMPLER,
    },
    "schedule": {
        "azula.noise.CosineSchedule": ("alpha_min", "sigma_min"),
        "azula.noise.DecaySchedule": ("alpha_min", "gamma", "sigma_min"),
        "azula.noise.RectifiedSchedule": ("alpha_min", "sigma_min"),
        "azula.noise.VESchedule": ("sigma_max", "sigma_min"),
        "azula.noise.VPSchedule": ("alpha_min", "sigma_min"),
    },
    "student": {"diffem.em.DiffInstruct": ("lr", "score_lr", "sigma", "steps")},
    "trainer": {
        "lightning.Trainer": (
            *("accelerator", "deterministic", "devices", "gradient_clip_val"),
            *("log_every_n_steps", "num_nodes", "precision", "strategy"),
        )
    },
    "trainer.strategy": {
        "lightning.pytorch.strategies.DDPStrategy": (
            *("bucket_cap_mb", "find_unused_parameters", "gradient_as_bucket_view"),
            *("process_group_backend", "static_graph"),
        )
    },
}
PARTIAL = ("m_step.optimizer", "method.posterior", "sampler")
"""Places of classes whose other arguments the program gives later: `_partial_: true`."""
SETTINGS: Mapping[str, tuple[str, ...]] = {  # nodes without a class of their own
    "method": ("condition", "objective", "posterior", "supervised"),
    "prior": ("steps",),
}
REFUSED = ("_args_", "_convert_", "_recursive_")
"""Keys that mean something to Hydra's `instantiate`, and nothing here."""


def check_targets(config: Any, *, trust: Sequence[str] = ()) -> None:  # noqa: ANN401
    """Checks what a configuration would build.

    Arguments:
        config: The configuration without Hydra's node, in plain types.
        trust: Packages from which everything may be built where something is built, with any
            arguments.

    Raises:
        UserError: If a `_target_` is neither in the registry for its place nor of a trusted
            package, a key is none of its class, or a `_partial_` is not what its place needs.
    """
    _Check(trust).node(config, "")


class _Check:
    def __init__(self, trust: Sequence[str]) -> None:
        self.trust = trust

    def node(self, node: object, where: str, own: bool = False) -> None:
        """Checks a node and those in it; `own` is whether it is an argument of a trusted class."""
        if isinstance(node, list):
            for i, value in enumerate(node):
                self.node(value, f"{where}.{i}", own)
        if not isinstance(node, dict):
            return
        place = _place(where)
        if wrong := [key for key in REFUSED if key in node]:
            raise UserError(f"{_join(where, wrong[0])} is not allowed; leave it out")
        if "_target_" in node:
            own = self.target(node, where, place, own)
        elif "_partial_" in node and place not in PARTIAL:
            raise UserError(f"{where}._partial_ has no effect without a _target_; leave it out")
        elif place in SETTINGS and not self.trust:
            _check_keys(node, where, where, SETTINGS[place])
        for key, value in node.items():
            self.node(value, _join(where, key), own)

    def target(self, node: Mapping[Any, Any], where: str, place: str, own: bool) -> bool:
        """Checks a node with a `_target_`; returns whether it is of a trusted package."""
        target, allowed = node["_target_"], _allowed(place, own=own)
        root, dot, _ = str(target).partition(".")
        trusted = bool(dot) and root in self.trust and bool(_below(place.partition(".")[0]))
        if not trusted:
            _check_target(f"{where}._target_", target, allowed)
            # Those of the trainer are checked with its values, by `check_trainer`; what is
            # assumed of a corruption is checked once it has taken the place of the corruption's.
            if place != "trainer" and not where.startswith("assumed"):
                _check_keys(node, where, str(target), allowed[str(target)])
        flag = node.get("_partial_", False)
        if not isinstance(flag, bool):
            raise UserError(f"{where}._partial_ must be true or false, got {flag!r}")
        if not (own or trusted) and flag != (place in PARTIAL):
            do = "set it to true" if place in PARTIAL else "leave it out"
            raise UserError(f"{where}._partial_={str(flag).lower()} is not allowed here; {do}")
        return trusted


def targets(config: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yields the full key and the value of every `_target_` in a container of plain types."""
    yield from _targets(config, "")


def _place(where: str) -> str:
    """Returns the place of a full key, as the registry names it."""
    parts = where.split(".")
    if parts[0] == "assumed":  # keys of the corruption
        parts[0] = "corruption"
    for place in ALLOWED:
        named = place.split(".")
        if len(named) == len(parts) and all(
            n in ("*", p) for n, p in zip(named, parts, strict=True)
        ):
            return place
    return ".".join(parts)


def _below(key: str) -> dict[str, tuple[str, ...]]:
    """Returns all classes that are built at places under a top-level key."""
    return {
        name: keys
        for place, registry in ALLOWED.items()
        if place.partition(".")[0] == key
        for name, keys in registry.items()
    }


def _allowed(place: str, *, own: bool) -> Registry:
    """Returns the classes for a place; as an argument of a trusted class, those of its key."""
    return ALLOWED.get(place) or (_below(place.partition(".")[0]) if own else {})


def _check_target(where: str, target: object, allowed: Registry) -> None:
    if not isinstance(target, str) or target not in allowed:
        known = ", ".join(allowed) or "nothing is built there"
        root = str(target).partition(".")[0]
        how = f"trust=[{root}] (to sample and generate: --trust {root})"
        trust = f"; if {root} is a package that you trust, add {how}"
        advice = trust if allowed and _is_of_a_user(root) else ""
        raise UserError(f"{where}={target} is not allowed; allowed: {known}{advice}")


def _check_keys(node: Mapping[Any, Any], where: str, owner: str, allowed: Sequence[str]) -> None:
    """Refuses keys of a node that are none of its class's, or of its own."""
    for key in node:
        if key not in (*allowed, "_partial_", "_target_"):
            known = ", ".join(allowed) or "none"
            raise UserError(f"{where}.{key} is not a key of {owner}, which has {known}")


def _is_of_a_user(package: str) -> bool:
    """Returns whether there is a package that is neither Python's nor one of the lists here."""
    listed = {n.partition(".")[0] for registry in ALLOWED.values() for n in registry}
    if not package.isidentifier() or package in {*listed, "hydra", *sys.stdlib_module_names}:
        return False
    return find_package(package) is not None


def _targets(node: object, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield _join(where, "_target_"), node["_target_"]
        for key, value in node.items():
            yield from _targets(value, _join(where, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{where}.{i}")


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
