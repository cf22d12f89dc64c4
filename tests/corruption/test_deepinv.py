"""`corruption=deepinv`: operators of another library keep the laws of diffem's own."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import run_here
from torch import Generator, Tensor

from diffem.corruption import DeepInverse, GaussianNoise, make_channel
from diffem.corruption.deepinv_table import PHYSICS
from diffem.result import load
from diffem.runtime.errors import UserError

EPS = torch.finfo(torch.float32).eps
GREY, COLOUR = (1, 8, 8), (3, 8, 8)
PSF = {"psf_size": [3, 3], "sigma_min": 0.5, "sigma_max": 1.5}
MASK = {
    "generator": "BernoulliSplittingMaskGenerator",
    "generator_arguments": {"split_ratio": 0.5},
}
LINES = {"generator": "RandomMaskGenerator", "generator_arguments": {"acceleration": 2}}
BLUR = {"generator": "GaussianBlurGenerator", "generator_arguments": PSF}
TRIED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "Blur": (GREY, {"arguments": {"padding": "circular"}, **BLUR}),
    "BlurFFT": (
        GREY,
        {"generator": "MotionBlurGenerator", "generator_arguments": {"psf_size": 5}},
    ),
    "CompressedSensing": (GREY, {"arguments": {"m": 20}}),
    "Decolorize": (COLOUR, {}),
    "Demosaicing": (COLOUR, {}),
    "Denoising": (GREY, {}),
    "Downsampling": (GREY, {"arguments": {"factor": 2, "filter": "bilinear"}}),
    "HyperSpectralUnmixing": (GREY, {"arguments": {"C": 4}}),
    "Inpainting": (GREY, MASK),
    "MRI": (GREY, LINES),
    "MultiCoilMRI": (GREY, LINES),
    "SinglePixelCamera": (GREY, {"arguments": {"m": 20}}),
    "Tomography": (GREY, {"arguments": {"angles": 6}}),
}
MORE: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # other arguments, other shapes
    "Blur": (COLOUR, {"generator": "DiffractionBlurGenerator",
                      "generator_arguments": {"psf_size": [5, 5], "pupil_size": [32, 32]}}),
    "BlurFFT": (COLOUR, BLUR),
    "CompressedSensing": (COLOUR, {"arguments": {"m": 20, "channelwise": True}}),
    "Inpainting": (COLOUR, {"arguments": {"mask": 0.5}}),
    "MRI": ((2, 8, 8), {"generator": "EquispacedMaskGenerator",
                        "generator_arguments": {"acceleration": 2, "center_fraction": 0.25}}),
    "MultiCoilMRI": ((2, 8, 8), {}),
    "SinglePixelCamera": (GREY, {"arguments": {"m": 20, "fast": False}}),
    "Tomography": (COLOUR, {"arguments": {"angles": [0, 45, 90], "circle": True}}),
}  # fmt: skip
CASES = [*TRIED.items(), *MORE.items()]
IDS = [*TRIED, *(f"{name} of another form" for name in MORE)]


def operator_of(case: tuple[str, tuple[tuple[int, ...], dict[str, Any]]]) -> DeepInverse:
    name, (shape, given) = case
    return DeepInverse(shape, physics=name, **given)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(dim=1)


def test_all_that_are_allowed_are_tried() -> None:
    assert PHYSICS.keys() == TRIED.keys() and len(TRIED) >= 10


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_adjoint(case: tuple[str, Any]) -> None:
    """⟨A x, v⟩ = ⟨x, Aᵀ v⟩, in float32.

    The longest sum of either has n terms, of which float32 makes an error of n ε at most in units
    of the norms (Higham 2002, section 3.1).
    """
    operator, gen = operator_of(case), seeded(0)
    phi, x = operator.draw(4, gen), torch.randn(4, *operator.shape, generator=gen)
    ax = operator.apply(x, phi)
    v = torch.randn(ax.shape, generator=gen)
    at_v = operator.adjoint(v, phi)
    norms = (inner(ax, ax) * inner(v, v)).sqrt() + (inner(x, x) * inner(at_v, at_v)).sqrt()
    bound = max(x[0].numel(), v[0].numel()) * EPS * norms
    assert ((inner(ax, v) - inner(x, at_v)).abs() <= bound).all()
    assert inner(ax, ax).min() > 0
    assert operator.apply(x.double(), phi.double()).dtype == torch.float64


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_draws_repeat_and_are_each_sample_s_own(case: tuple[str, Any]) -> None:
    operator, shape = operator_of(case), (3, *case[1][0])
    torch.manual_seed(1)
    first = operator.draw(3, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(first, operator_of(case).draw(3, seeded(5)))
    x = torch.randn(shape, generator=seeded(6))
    # What an earlier call left does not matter: φ goes to each call.
    alone = torch.cat([operator.apply(x[i : i + 1], first[i : i + 1]) for i in range(3)])
    operator.apply(x, operator.draw(3, seeded(7)))
    # The longest sum has 192 terms, of values below 8.
    torch.testing.assert_close(operator.apply(x, first), alone, rtol=0, atol=192 * 8 * EPS)
    if operator.generator is not None:
        assert not torch.equal(first, operator.draw(3, seeded(8)))
        assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_is_not_measured_is_zero(case: tuple[str, Any]) -> None:
    """A x is 0 where y holds no measured entry, for each x, and nowhere else for all x."""
    operator = operator_of(case)
    phi = operator.draw(1, seeded(9)).expand(64, *operator.draw(1, seeded(9)).shape[1:])
    y = operator.apply(torch.randn(64, *operator.shape, generator=seeded(10)), phi)
    measured = operator.measured_mask(y, phi).bool()
    assert (y[~measured] == 0).all()
    # The imaginary part of a real image's mean is 0, though it is measured.
    if operator.masks and not (operator.tried.complex and operator.shape[0] == 1):
        assert torch.equal(measured[0], y.abs().amax(dim=0) > 0)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_spectrum(case: tuple[str, Any]) -> None:
    """AᵀA x = V diag(s²) Vᵀ x, and V is orthonormal, where there is one."""
    operator, gen = operator_of(case), seeded(11)
    phi, x = operator.draw(4, gen), torch.randn(4, *operator.shape, generator=gen)
    spectrum = operator.spectrum(phi)
    assert (spectrum is not None) == (
        operator.tried.diagonal
        or operator.physics == "BlurFFT"
        or (operator.physics == "Blur" and operator.arguments.get("padding") == "circular")
        or (operator.physics == "MRI" and operator.shape[0] == 2)
        or (operator.physics == "SinglePixelCamera" and "fast" not in operator.arguments)
    )
    if spectrum is None:
        assert not operator.covers and not operator.keeps_coefficients
        return
    z = spectrum.analyse(x)
    torch.testing.assert_close(inner(z, z), inner(x, x), rtol=192 * EPS, atol=0)
    both = operator.adjoint(operator.apply(x, phi), phi)
    analysed = spectrum.synthesise(spectrum.square * z)
    torch.testing.assert_close(analysed, both, rtol=0, atol=192 * 8 * EPS)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_network_sees_it_on_the_grid(case: tuple[str, Any]) -> None:
    operator = operator_of(case)
    channel = make_channel(operator, GaussianNoise(0.1))
    x = torch.randn(3, *operator.shape, generator=seeded(12))
    measurement = channel.draw(x, seeded(13))
    embedding = channel.embed(measurement)
    assert embedding.shape[2:] == operator.shape[1:]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(channel.embed(measurement), embedding)
    if operator.generator is not None:  # φ of one sample moves what is seen of that one alone
        other = torch.cat([operator.draw(1, seeded(14)), measurement.operator[1:]])
        seen, moved = operator.maps(x, measurement.operator)[0], operator.maps(x, other)[0]
        assert not torch.equal(seen[0], moved[0]) and torch.equal(seen[1:], moved[1:])


def overrides(name: str) -> list[str]:
    """Returns the settings of a run, as on the command line."""
    _, given = TRIED[name]

    def text(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{k}:{text(v)}" for k, v in value.items()) + "}"
        return f"[{','.join(map(text, value))}]" if isinstance(value, list) else str(value)

    keys = [f"corruption.{key}={text(value)}" for key, value in given.items()]
    return ["corruption=deepinv", f"corruption.physics={name}", *keys]


@pytest.mark.parametrize("name", TRIED)
def test_trains_a_few_steps(name: str, tmp_path: Path) -> None:
    """Issue 13, Show 5; and what was trained can be loaded and sampled."""
    data = []
    if TRIED[name][0] == COLOUR:  # which the digits are not
        rng = np.random.default_rng(0)
        clean = rng.uniform(0, 255, (40, *COLOUR))
        _, given = TRIED[name]
        operator = DeepInverse(COLOUR, physics=name, **given)
        none = torch.empty(40, 0)
        np.save(tmp_path / "y.npy", operator.apply(torch.from_numpy(clean), none).numpy())
        data = [
            "dataset=measurements",
            f"dataset.path={tmp_path / 'y.npy'}",
            "dataset.shape=[3,8,8]",
        ]
    run_dir = run_here(tmp_path / "run", *overrides(name), *data)
    result = load(run_dir, device="cpu")
    x = torch.zeros(2, *result.channel.shape)
    y, phi, _ = result.channel.draw(x, seeded(0))
    drawn = phi.numpy() if phi.numel() else None
    assert result.posterior.sample(y.numpy(), operator=drawn).isfinite().all()
    assert result.summary is not None and result.summary["final"]["residual_chi2"] > 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"physics": "GammaNoise"}, "ignores the generator it is given, so that its draws do not"),
    ({"physics": "FisherTippettNoise"}, "choose a noise of corruption/noise"),
    (
        {"physics": "Denoising", "arguments": {"noise_model": "GammaNoise"}},
        "noise is not deepinv's here, and this one ignores its generator",
    ),
    (
        {"physics": "Denoising", "arguments": {"noise_model": "GaussianNoise"}},
        "has a noise_model=GaussianNoise, which has no effect",
    ),
    ({"physics": "TomographyWithAstra"}, "is none of deepinv's that were tried; allowed: Blur, "),
    ({"physics": "os.system"}, "is none of deepinv's that were tried"),
    (
        {"physics": "Tomography", "arguments": {"device": "cuda"}},
        "has device, and Tomography may be given angles, circle, fan_beam, normalize",
    ),
    ({"physics": "Denoising", "arguments": {"mask": 1.0}}, "Denoising may be given nothing"),
    ({"physics": "Tomography", "arguments": {"angles": 1e300}}, "must be a number in [-4096"),
    ({"physics": "Tomography", "arguments": {"angles": {}}}, "corruption.arguments: angles must"),
    ({"physics": "Tomography", "arguments": [12]}, "must be a mapping such as {mask: 0.5}"),
    ({"physics": "Tomography", "arguments": {"angles": "x"}}, "do not work on images of shape"),
    ({"physics": "Tomography", "generator": "RandomMaskGenerator"}, "allowed: null, as it has no"),
    ({"physics": "MRI", "generator": "SigmaGenerator"}, "allowed: EquispacedMaskGenerator, Ga"),
    ({"physics": "MRI", "generator_arguments": {"acceleration": 2}}, "without corruption.genera"),
    ({"physics": "Blur"}, "corruption.generator must be given with corruption.physics=Blur; all"),
    ({"physics": "Inpainting"}, "corruption.generator must be given"),
    (
        {"physics": "Inpainting", "arguments": {"mask": 0.5}, **MASK},
        "BernoulliSplittingMaskGenerator, which draws it; leave one of the two out",
    ),
    ({"physics": "Demosaicing"}, "do not work on images of shape [1, 8, 8]: "),
    ({"physics": "CompressedSensing"}, "do not work on images of shape [1, 8, 8]: "),
    ({"physics": "SinglePixelCamera", "arguments": {"m": 4, "ordering": "x"}}, "Unknown ordering"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED)
def test_refused_in_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        DeepInverse(GREY, **given)
    assert "\n" not in str(error.value)


def test_no_matrix_beyond_memory() -> None:
    with pytest.raises(UserError, match="needs a matrix of over 67108864 entries"):
        DeepInverse((1, 256, 256), physics="CompressedSensing", arguments={"m": 4000})


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run is loaded, of which no configuration is composed."""
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(UserError, match=r"needs the package deepinv.*pip install 'diffem\[deep"):
        DeepInverse(GREY, physics="Denoising")


@pytest.mark.parametrize("mask", [0.2, 0.8])
def test_arguments_reach_the_operator(mask: float) -> None:
    operator = DeepInverse((1, 64, 64), physics="Inpainting", arguments={"mask": mask})
    kept = operator.apply(torch.ones(1, 1, 64, 64), operator.draw(1, seeded(0))).mean()
    assert abs(kept - mask) < 4 * (mask * (1 - mask) / 64**2) ** 0.5  # 4 standard errors


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_masks_measure_can_be_left_out(case: tuple[str, Any]) -> None:
    """Entry by entry, where a mask is drawn and its coefficients are fused: for the guard."""
    operator = operator_of(case)
    phi = operator.draw(64, seeded(15))
    rest = operator.leave_out(phi, 0.25, seeded(16))
    assert (rest is not None) == operator.keeps_coefficients
    if rest is not None:
        hidden = (phi - rest)[phi > 0]
        assert {*hidden.unique().tolist()} == {0.0, 1.0} and (rest <= phi).all()
        # Monte Carlo: 4 standard errors.
        assert abs(hidden.mean() - 0.25) < 4 * (0.25 * 0.75 / hidden.numel()) ** 0.5
