"""diffem learns from corrupted images alone: samplers of p(x | y) and of p(x).

    run = diffem.fit(y, corruption="mask", run_dir="runs/mine")     # from arrays
    run = diffem.load("runs/mine")                                  # a finished run
    x = run.posterior.sample(y, n=16)                               # in the data's units

Names are imported when they are used: torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from diffem.cli.calibrate import calibrate
    from diffem.cli.fit import fit
    from diffem.corruption import (
        Blur,
        Channel,
        Denoising,
        Downsample,
        GaussianNoise,
        LinearChannel,
        LinearGaussianChannel,
        LinearOperator,
        Mask,
        Measurement,
        PoissonGaussianNoise,
        PoissonNoise,
        Projection,
        make_channel,
    )
    from diffem.data.arrays import measurement_of
    from diffem.data.measurements import MeasurementSet
    from diffem.data.scale import Scale
    from diffem.result import Result, load
    from diffem.runtime.errors import UserError

_MODULES = {
    "Blur": "diffem.corruption",
    "Channel": "diffem.corruption",
    "Denoising": "diffem.corruption",
    "Downsample": "diffem.corruption",
    "GaussianNoise": "diffem.corruption",
    "LinearChannel": "diffem.corruption",
    "LinearGaussianChannel": "diffem.corruption",
    "LinearOperator": "diffem.corruption",
    "Mask": "diffem.corruption",
    "Measurement": "diffem.corruption",
    "MeasurementSet": "diffem.data.measurements",
    "PoissonGaussianNoise": "diffem.corruption",
    "PoissonNoise": "diffem.corruption",
    "Projection": "diffem.corruption",
    "Result": "diffem.result",
    "Scale": "diffem.data.scale",
    "UserError": "diffem.runtime.errors",
    "calibrate": "diffem.cli.calibrate",
    "fit": "diffem.cli.fit",
    "load": "diffem.result",
    "make_channel": "diffem.corruption",
    "measurement_of": "diffem.data.arrays",
}

__all__ = [
    "Blur",
    "Channel",
    "Denoising",
    "Downsample",
    "GaussianNoise",
    "LinearChannel",
    "LinearGaussianChannel",
    "LinearOperator",
    "Mask",
    "Measurement",
    "MeasurementSet",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Projection",
    "Result",
    "Scale",
    "UserError",
    "calibrate",
    "fit",
    "load",
    "make_channel",
    "measurement_of",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class or a function
    if name not in _MODULES:
        raise AttributeError(f"module 'diffem' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
