"""deepinv's operators that were tried, with the arguments that a configuration may give to each.

Nothing else of the library is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES, check

Shape = tuple[int, ...]
NUMBER = RANGES["a number among deepinv's arguments"]
UNSEEDED = ("FisherTippettNoise", "GammaNoise")
"""Noise models of deepinv that draw from the global generator, whichever they are given."""


@dataclass(frozen=True)
class Tried:
    """A class of deepinv that was tried."""

    arguments: tuple[str, ...] = ()
    """The arguments that a configuration may give."""
    given: Callable[[Shape], dict[str, Any]] = lambda shape: {}
    """Returns the arguments that follow from the shape (C, *S) of x."""


@dataclass(frozen=True)
class Physics(Tried):
    """A linear physics of deepinv that was tried."""

    parameter: str = ""
    """The argument of A that φ is; "" if A has no parameters."""
    generators: Mapping[str, Tried] = field(default_factory=dict)
    """What draws φ, by name."""
    optional: bool = False
    """Whether A is defined without φ."""
    masks: bool = False
    """Whether the attribute `mask` says which entries of y are measured."""
    diagonal: bool = False
    """Whether A is the product with a mask, or the identity."""
    decomposed: bool = False
    """Whether V of its singular value decomposition is a basis of x (of MRI a complex one), and
    `mask` has the singular values."""
    complex: bool = False
    """Whether x has two channels, its real and its imaginary part."""
    units: bool = True
    """Whether A x is in the units of x."""


def _image(shape: Shape) -> dict[str, Any]:
    return {"img_size": shape}


def _grid(shape: Shape) -> dict[str, Any]:
    return {"img_size": shape[1:]}


_RATES = ("acceleration", "center_fraction")
PSFS = {
    "DiffractionBlurGenerator": Tried(
        ("fc", "max_zernike_amplitude", "psf_size", "pupil_size", "random_rotate")
    ),
    "GaussianBlurGenerator": Tried(
        ("angle_max", "angle_min", "isotropic", "psf_size", "sigma_max", "sigma_min")
    ),
    "MotionBlurGenerator": Tried(("l", "n_steps", "psf_size", "sigma")),
}
LINES = {  # of k-space
    "EquispacedMaskGenerator": Tried(_RATES, _grid),
    "GaussianMaskGenerator": Tried(_RATES, _grid),
    "PolyOrderMaskGenerator": Tried((*_RATES, "poly_order"), _grid),
    "RandomMaskGenerator": Tried(_RATES, _grid),
}
PIXELS = {
    "BernoulliSplittingMaskGenerator": Tried(("pixelwise", "split_ratio"), _image),
    "GaussianSplittingMaskGenerator": Tried(
        ("center_block", "pixelwise", "split_ratio", "std_scale"), _image
    ),
}
MRI = Physics(
    (),
    _grid,
    parameter="mask",
    generators=LINES,
    optional=True,
    masks=True,
    complex=True,
    units=False,
)
PHYSICS: Mapping[str, Physics] = {
    "Blur": Physics(("padding", "use_fft"), parameter="filter", generators=PSFS),
    "BlurFFT": Physics((), _image, parameter="filter", generators=PSFS),
    "CompressedSensing": Physics(("channelwise", "m"), _image, units=False),
    "Decolorize": Physics(("srf",), lambda shape: {"channels": shape[0]}),
    "Demosaicing": Physics(("pattern",), _image, masks=True, diagonal=True),
    "Denoising": Physics(diagonal=True),
    "Downsampling": Physics(("factor", "filter", "padding"), _image),
    "HyperSpectralUnmixing": Physics(("C",), lambda shape: {"E": shape[0]}, units=False),
    "Inpainting": Physics(
        ("mask", "pixelwise"),
        _image,
        parameter="mask",
        generators=PIXELS,
        masks=True,
        diagonal=True,
    ),
    "MRI": replace(MRI, decomposed=True),
    "MultiCoilMRI": replace(MRI, arguments=("coil_maps",)),
    "SinglePixelCamera": Physics(
        ("fast", "m", "ordering"), _image, masks=True, decomposed=True, units=False
    ),
    "Tomography": Physics(
        ("angles", "circle", "fan_beam", "normalize"),
        lambda shape: {"img_width": shape[-1], "normalize": True},
        units=False,
    ),
}


def find_physics(name: str) -> Physics:
    """Returns the physics of a name.

    Raises:
        UserError: If it is none that was tried.
    """
    if name in UNSEEDED:
        raise UserError(
            f"corruption.physics={name} is a noise of deepinv that ignores the generator it is "
            "given, so that its draws do not repeat; choose a noise of corruption/noise"
        )
    if name not in PHYSICS:
        raise UserError(
            f"corruption.physics={name} is none of deepinv's that were tried; allowed: "
            f"{', '.join(PHYSICS)}"
        )
    return PHYSICS[name]


def find_generator(physics: str, name: str) -> Tried:
    """Returns the generator of a name.

    Raises:
        UserError: If it draws no parameters of the physics.
    """
    generators = PHYSICS[physics].generators
    if name not in generators:
        allowed = ", ".join(generators) or "null, as it has no parameters that are drawn"
        raise UserError(
            f"corruption.generator={name} draws nothing for corruption.physics={physics}; "
            f"allowed: {allowed}"
        )
    return generators[name]


def plain_arguments(
    key: str, given: Mapping[str, Any] | None, allowed: Sequence[str], owner: str
) -> dict[str, Any]:
    """Returns arguments as deepinv takes them, with tuples in place of lists.

    Raises:
        UserError: If there is another argument than those allowed, or a value is not plain.
    """
    if not isinstance(given, Mapping | None):
        raise UserError(f"{key} must be a mapping such as {{mask: 0.5}}, got {given!r}")
    plain = {}
    for name, value in (given or {}).items():
        if name == "noise_model":
            ignores = ", and this one ignores its generator" if value in UNSEEDED else ""
            raise UserError(
                f"{key} has a noise_model={value}, which has no effect: noise is not deepinv's "
                f"here{ignores}; choose a noise of corruption/noise"
            )
        if name not in allowed:
            raise UserError(
                f"{key} has {name}, and {owner} may be given {', '.join(allowed) or 'nothing'}"
            )
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        for part in value if listed else (value,):
            if not isinstance(part, bool | str):
                check(f"{key}: {name}", part, own=NUMBER)
        plain[name] = tuple(value) if listed else value
    return plain
