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

from diffem.corruption import LinearGaussianChannel, Measurement
from diffem.corruption.operator import full_precision
from diffem.denoiser import Denoiser
from diffem.posterior.covariance import Heuristic, PrincipalComponents
from diffem.posterior.posterior import DenoiserPosterior, SamplerFactory, require_spectrum


class PseudoInverseDenoiser(AzulaDenoiser):
    """The denoiser of p(x | x_t, y) that guidance makes of one of p(x | x_t).

    Arguments:
        denoiser: An unconditional denoiser of images.
        channel: The channel, of known spectrum.
        measurement: The measurements, (B, …).
        covariance: The covariance V.
    """

    def __init__(
        self,
        denoiser: AzulaDenoiser,
        channel: LinearGaussianChannel,
        measurement: Measurement,
        covariance: Heuristic,
    ) -> None:
        super().__init__()
        spectrum = channel.spectrum(measurement.operator)
        assert spectrum is not None
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.covariance = covariance
        self.spectrum = spectrum
        self.At_y = spectrum.analyse(channel.adjoint(measurement.y, measurement.operator))
        self.var = channel.variance(measurement)

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        """Returns E[x | x_t, y], (B, *shape), as a Dirac posterior."""
        alpha_t, sigma_t = self.schedule(t)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            x_hat = self.denoiser(x_t, t).mean
        residual_At = self.spectrum.synthesise(
            self._solve(x_hat.detach(), (alpha_t / sigma_t) ** 2)
        )
        (grad,) = torch.autograd.grad(x_hat, x_t, residual_At)
        return DiracPosterior(mean=x_hat.detach() + sigma_t**2 / alpha_t * grad)

    @full_precision
    def _solve(self, x_hat: Tensor, precision: Tensor) -> Tensor:
        """Returns the coefficients of Aᵀ (A V Aᵀ + σ_y²)⁻¹ (y - A x̂), (B, *shape)."""
        u, v, w = self.covariance(precision)
        square = self.spectrum.square
        residual = self.At_y - square * self.spectrum.analyse(x_hat)
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
        # Not `solve`, which would make the host wait for the device to report an error.
        inner = torch.linalg.solve_ex(small, b.mT @ pull.flatten(1)[..., None]).result
        return pull - (seen @ inner).reshape_as(pull)


class PiGDM(DenoiserPosterior):
    """The posterior that this guidance defines: ΠGDM, or MMPS with a heuristic covariance.

    Arguments:
        denoiser: An unconditional denoiser.
        channel: The channel, of known spectrum.
        sampler: The sampler.
        covariance: The covariance V; that of the data (`cov_x`) is fitted to reconstructions.
    """

    requires = LinearGaussianChannel

    def __init__(
        self,
        denoiser: Denoiser,
        channel: LinearGaussianChannel,
        *,
        sampler: SamplerFactory,
        covariance: Heuristic,
    ) -> None:
        super().__init__(denoiser, channel)
        require_spectrum(channel, "method.posterior=PiGDM")
        self.sampler = sampler
        self.covariance = covariance

    @property
    def fits(self) -> bool:
        """Whether the covariance is that of reconstructions."""
        return isinstance(self.covariance, PrincipalComponents)

    def fit(self, reconstructions: Tensor) -> None:
        """Fits the covariance to reconstructions, (n, *shape)."""
        device = next(self.denoiser.parameters()).device  # or each step would bring it there
        self.covariance = self.covariance.fitted(reconstructions.to(device))

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape)."""
        channel = self.channel
        assert isinstance(channel, LinearGaussianChannel)
        guide = PseudoInverseDenoiser(self.denoiser, channel, measurement, self.covariance)
        process = self.sampler(denoiser=guide, silent=True)
        size = measurement.y.shape[:1] + channel.shape
        return process(process.init(size, device=measurement.y.device))
