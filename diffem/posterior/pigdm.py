"""Guidance by the likelihood's gradient under an assumed covariance: ΠGDM, MMPS's heuristics.

With p(x | x_t) taken for N(x̂, V), p(y | x_t) is N(A x̂, A V Aᵀ + σ_y²), and

    E[x | x_t, y] ≈ x̂ + σ_t²/α_t (∂x̂/∂x_t)ᵀ Aᵀ (A V Aᵀ + σ_y²)⁻¹ (y - A x̂)

V = (1 + α_t²/σ_t²)⁻¹ I is pseudo-inverse guidance (ΠGDM, Song et al. 2023) and MMPS's `identity`;
the other heuristics are in `covariance`. The inverse is exact, in the operator's spectrum.
"""

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.corruption.channel import expand
from diffem.denoiser.denoiser import Denoiser
from diffem.posterior.covariance import Heuristic
from diffem.posterior.posterior import Posterior, SamplerFactory


class PseudoInverseDenoiser(AzulaDenoiser):
    """The denoiser of p(x | x_t, y) that guidance makes of one of p(x | x_t).

    Arguments:
        denoiser: An unconditional denoiser of images.
        corruption: The channel, of known spectrum.
        measurement: The measurements, (B, …).
        covariance: The covariance V.

    Raises:
        NotImplementedError: If the operator's spectrum is not at hand.
    """

    def __init__(
        self,
        denoiser: AzulaDenoiser,
        corruption: Corruption,
        measurement: Measurement,
        covariance: Heuristic,
    ) -> None:
        super().__init__()
        spectrum = corruption.spectrum(measurement.operator)
        if spectrum is None:
            raise NotImplementedError(f"{type(corruption).__name__} has no spectrum")
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.covariance = covariance
        self.spectrum = spectrum
        self.back = spectrum.analyse(corruption.adjoint(measurement.y, measurement.operator))
        self.var = expand(measurement.std**2, self.back)

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        """Returns E[x | x_t, y], (B, *shape), as a Dirac posterior."""
        alpha_t, sigma_t = self.schedule(t)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            x_hat = self.denoiser(x_t, t).mean
        pull = self.spectrum.synthesise(self._solve(x_hat.detach(), (alpha_t / sigma_t) ** 2))
        (grad,) = torch.autograd.grad(x_hat, x_t, pull)
        return DiracPosterior(mean=x_hat.detach() + sigma_t**2 / alpha_t * grad)

    def _solve(self, x_hat: Tensor, precision: Tensor) -> Tensor:
        """Returns the coefficients of Aᵀ (A V Aᵀ + σ_y²)⁻¹ (y - A x̂), (B, *shape)."""
        u, v, w = self.covariance(precision)
        square = self.spectrum.square
        residual = self.back - square * self.spectrum.analyse(x_hat)
        gain = 1 / (w * square + self.var)
        pull = gain * residual
        if u.shape[1] == 0:
            return pull
        # V = w I + U diag(v - w) Uᵀ: Woodbury's identity about the isotropic part.
        basis = [column.reshape_as(x_hat[0]).expand_as(x_hat) for column in u.unbind(dim=1)]
        b = torch.stack([self.spectrum.analyse(x).flatten(1) for x in basis], dim=2)
        b = b * (v - w).clamp(min=0).sqrt()
        seen = (gain * square).expand_as(x_hat).flatten(1)[..., None] * b
        small = torch.eye(b.shape[2], device=b.device) + b.mT @ seen
        inner = torch.linalg.solve(small, b.mT @ pull.flatten(1)[..., None])
        return pull - (seen @ inner).reshape_as(pull)


def pigdm(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
    covariance: Heuristic,
) -> Posterior:
    """Returns the posterior that this guidance defines: ΠGDM, or MMPS with a heuristic.

    Arguments:
        denoiser: An unconditional denoiser.
        corruption: The channel, of known spectrum.
        x: Reconstructions of the round before, (n, *shape), for `cov_x`.
        sampler: The sampler.
        covariance: The covariance V.
    """
    fitted = covariance.fitted(x)

    def draw(measurement: Measurement) -> Tensor:
        guide = PseudoInverseDenoiser(denoiser, corruption, measurement, fitted)
        process = sampler(denoiser=guide, silent=True)
        size = measurement.y.shape[:1] + corruption.shape
        return process(process.init(size, device=measurement.y.device))

    return draw
