"""deepinv's linear physics by name: A_φ of `deepinv.physics`, φ of `deepinv.physics.generator`.

deepinv (Tachella et al. 2025, arXiv 2505.20160) is a library of forward operators. Those that were
tried are in `diffem.corruption.deepinv_table`. Noise is diffem's own (`diffem.corruption.noise`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from diffem.corruption.basis import ENTRIES, HartleyBasis
from diffem.corruption.deepinv_table import (
    Tried,
    find_generator,
    find_physics,
    plain_arguments,
)
from diffem.corruption.operator import LinearOperator, full_precision, thinned
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.extras import Extra, check_installed
from diffem.runtime.rng import seeded

MATRIX = 2**26  # of a matrix that an operator may hold: 256 MiB


class SingularBasis(NamedTuple):
    """V of the singular value decomposition A = U diag(s) Vᵀ of a physics of deepinv."""

    physics: Any
    """The DecomposablePhysics, of which V is the same for all samples."""

    @property
    def number(self) -> int:
        return 1

    def analyse(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.physics.V_adjoint(x.float()).to(x.dtype)

    def synthesise(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.physics.V(z.float()).to(z.dtype)

    def select(self, index: Tensor) -> "SingularBasis":
        return self


class DeepInverse(LinearOperator):
    """A linear physics of deepinv.

    A and Aᵀ are computed in float32: several fail in float64. A complex x or y has two channels,
    its real and its imaginary part; a grey x is the real part of a complex one. φ, the mask or the
    filter that deepinv's generator draws from the generator it is given, goes to every call:
    deepinv would otherwise use what an earlier call left.

    Arguments:
        shape: The shape of x, (C, H, W).
        physics: The name of a class in deepinv.physics, one of `deepinv_table.PHYSICS`.
        arguments: Its arguments: numbers, truth values, texts, or lists of these. Those that
            follow from the shape are not among them.
        generator: The name of a class in deepinv.physics.generator that draws φ for each sample,
            one of the physics' own; None where A is the same for all.
        generator_arguments: Its arguments, likewise.

    Raises:
        UserError: If a class or an argument is none that was tried, if deepinv refuses an
            argument, or if the operator is none of images of this shape.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        physics: str,
        arguments: Mapping[str, Any] | None = None,
        generator: str | None = None,
        generator_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape)
        check_installed("corruption=deepinv", Extra("deepinv", "deepinv", "deepinv"))
        self.physics, self.tried = physics, find_physics(physics)
        given = plain_arguments("corruption.arguments", arguments, self.tried.arguments, physics)
        self.arguments = self.tried.given(self.shape) | given
        self.generator = generator
        drawn = Tried() if generator is None else find_generator(physics, generator)
        if generator is None and generator_arguments:
            raise UserError(
                "corruption.generator_arguments has no effect without corruption.generator; name "
                "it, or leave them out"
            )
        if generator is not None and self.tried.parameter in given:
            raise UserError(
                f"corruption.arguments={dict(given)} has no effect on its "
                f"{self.tried.parameter} with corruption.generator={generator}, which draws it; "
                "leave one of the two out"
            )
        self.generator_arguments = drawn.given(self.shape) | plain_arguments(
            "corruption.generator_arguments", generator_arguments, drawn.arguments, str(generator)
        )
        self.masks = self.tried.masks and bool(self.arguments.get("fast", True))
        self.preserves_intensity = self.tried.diagonal  # where it measures anything
        self.keeps_units = self.tried.units
        whole = self.tried.diagonal or (self.tried.decomposed and not self._real)
        self.covers = self.keeps_coefficients = self.masks and whole and generator is not None
        self._built: dict[torch.device, Any] = {}
        needed = self.tried.generators if generator is None and not self.tried.optional else {}
        if needed and self.tried.parameter not in given:
            raise UserError(
                f"corruption.generator must be given with corruption.physics={physics}; allowed: "
                f"{', '.join(needed)}"
            )
        self._try()

    def __str__(self) -> str:
        return f"deepinv's {self.physics}"

    def _try(self) -> None:
        """Applies the operator once.

        Raises:
            UserError: If it cannot be built, or is none of such images.
        """
        shape = list(self.shape)
        try:
            matrix = not self.arguments.get("fast", self.physics != "CompressedSensing")
            if matrix and int(self.arguments["m"]) * math.prod(shape) > MATRIX:
                raise ValueError(
                    f"m={self.arguments['m']} needs a matrix of over {MATRIX} entries"
                )
            operator = self.draw(1, Generator().manual_seed(0))
            x = self.adjoint(self.apply(torch.zeros(1, *shape), operator), operator)
            if x.shape[1:] != self.shape:
                raise ValueError(f"they are of images of shape {list(x.shape[1:])}")
        except Exception as error:  # deepinv raises what it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"corruption.physics={self.physics} and its arguments do not work on images of "
                f"shape {shape}: {reason}; correct corruption.arguments or "
                "corruption.generator_arguments, or choose another corruption"
            ) from error

    @property
    def _real(self) -> bool:
        """Whether x is the real part of what the physics takes."""
        return self.tried.complex and self.shape[0] == 1

    def _on(self, device: torch.device) -> Any:  # noqa: ANN401 - a LinearPhysics
        """Returns the physics on a device; a random matrix is the same on all."""
        if device not in self._built:
            from deepinv import physics  # type: ignore[import-not-found] # takes seconds

            with seeded("deepinv", self.physics):
                built = getattr(physics, self.physics)(**self.arguments)
            self._built[device] = built.to(device).requires_grad_(False)
        return self._built[device]

    def _named(self, operator: Tensor) -> dict[str, Tensor]:
        """Returns φ, (B, *P), as the argument of A that it is."""
        return {self.tried.parameter: operator.float()} if self.generator else {}

    def draw(self, n: int, generator: Generator) -> Tensor:
        if self.generator is None:
            return super().draw(n, generator)
        from deepinv.physics import generator as generators  # type: ignore[import-not-found]

        make = getattr(generators, self.generator)
        drawn = make(**self.generator_arguments, rng=generator, device=generator.device)
        return drawn.step(n)[self.tried.parameter].detach().float()

    @full_precision
    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        images = x.float()
        if self._real:
            images = torch.cat([images, torch.zeros_like(images)], dim=1)
        return self._on(x.device).A(images, **self._named(operator)).to(x.dtype)

    @full_precision
    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        x = self._on(y.device).A_adjoint(y.float(), **self._named(operator))
        if self.tried.complex:
            x = x[:, : self.shape[0]]
        return x.to(y.dtype)

    def _mask(self, operator: Tensor) -> Tensor:
        """Returns the mask of each sample, or one for all, (B or 1, …)."""
        return operator if self.generator else self._on(operator.device).mask

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        if not self.masks:
            return super().measured_mask(y, operator)
        mask = self._mask(operator)
        if mask.ndim < y.ndim:
            mask = mask.unsqueeze(2)  # coils come after the channels
        return (mask != 0).to(y.dtype).expand_as(y)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor | None:
        if not self.keeps_coefficients:
            return None
        return thinned(operator, fraction, generator)

    @full_precision
    def spectrum(self, operator: Tensor) -> Spectrum | None:
        if self.tried.diagonal:
            return Spectrum(ENTRIES, self._mask(operator) ** 2)
        periodic = self.physics == "Blur" and self.arguments.get("padding") == "circular"
        if periodic or self.physics == "BlurFFT":  # whose own V has complex coefficients
            wave = torch.fft.fft2(operator.float(), s=self.shape[1:])
            return Spectrum(HartleyBasis((2, 3)), wave.abs() ** 2)
        if self.tried.decomposed and self.masks and not self._real:
            return Spectrum(SingularBasis(self._on(operator.device)), self._mask(operator) ** 2)
        return None

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        """Returns φ if it is on the grid of x, or else AᵀA δ of the middle pixel, as of a blur."""
        if self.generator is None:
            return []
        if operator.shape[2:] == self.shape[1:]:
            return [operator]
        point = operator.new_zeros(len(operator), *self.shape)
        point[(slice(None), slice(None), *(side // 2 for side in self.shape[1:]))] = 1
        return [self.adjoint(self.apply(point, operator), operator)]
