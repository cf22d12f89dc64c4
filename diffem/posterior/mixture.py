"""A mixture of Gaussians and its exact posterior.

    x ~ Σ_j π_j N(μ_j, W_j W_jᵀ + ψ_j I),   y = A x + noise

a mixture of probabilistic principal components (Tipping & Bishop 1999, "Mixtures of probabilistic
principal component analysers"). In the basis of AᵀA = V diag(s²) Vᵀ a measurement is worth one
measurement h / p of variance 1 / p of each coefficient of z = Vᵀ x, with the precision
p = s² / σ_y² and the information h = Vᵀ Aᵀ y / σ_y². What follows is then arithmetic of vectors
and of matrices as small as the rank: given component j, with z = μ + W u + ψ^½ e, u ~ N(0, I),
and g = 1 / (1 + ψ p),

    S⁻¹ = I + Wᵀ diag(g p) W            u | y ~ N(û, S),    û = S Wᵀ g (h - p μ)
    V[z | u, y] = ψ g                   E[z | u, y] = g (ψ h + μ + W u)

g p <= 1 / ψ bounds the condition of S⁻¹, whatever the noise, so that float32 is enough.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffem.corruption import Basis, Channel, LinearChannel, Measurement
from diffem.corruption.operator import full_precision
from diffem.denoiser.condition import measured_coefficients
from diffem.posterior.posterior import Posterior
from diffem.runtime.errors import UserError

ROUNDING = 1e-10  # of the largest precision: what is below is a rounding error of s² = 0
OUTER = 2**26  # numbers of the products of loadings that are in memory at once
BLOCK = 2**24  # numbers of the matrices S of all components that are in memory at once


class Coefficients(NamedTuple):
    """What measurements say of the coefficients z = Vᵀ x."""

    precision: Tensor
    """p = s² / σ_y², (n, D); 0 where nothing is measured."""
    information: Tensor
    """h = Vᵀ Aᵀ y / σ_y², (n, D)."""
    basis: Basis
    """V."""
    shape: tuple[int, ...]
    """The shape of x."""

    def analyse(self, loading: Tensor) -> Tensor:
        """Returns Vᵀ of the columns of (D, m): (n, D, m), or (1, D, m) if all have one basis."""
        n = self.basis.number
        columns = loading.mT.reshape(-1, 1, *self.shape).expand(-1, n, *self.shape)
        return torch.stack([self.basis.analyse(c).flatten(1) for c in columns], dim=-1)

    def select(self, index: Tensor) -> "Coefficients":
        """Returns those of some measurements."""
        basis = self.basis.select(index)
        return Coefficients(self.precision[index], self.information[index], basis, self.shape)

    def synthesise(self, z: Tensor) -> Tensor:
        """Returns x = V z, (n, D)."""
        return self.basis.synthesise(z.reshape(-1, *self.shape)).flatten(1)


class Mixture(NamedTuple):
    """The parameters of K components of rank r over images of D numbers."""

    weight: Tensor
    """π, (K,)."""
    loading: Tensor
    """(W, μ), (K, D, r + 1)."""
    noise: Tensor
    """ψ, (K,)."""

    def to(self, device: torch.device) -> "Mixture":
        """Moves the parameters."""
        return Mixture(*(parameter.to(device) for parameter in self))


class ComponentPosterior(NamedTuple):
    """One component given measurements: p(j | y) and p(u | y, j)."""

    loading: Tensor
    """(W, μ) in the basis of each measurement, (n or 1, D, r + 1)."""
    gain: Tensor
    """g, (n, D)."""
    mean: Tensor
    """û, (n, r)."""
    root: Tensor
    """The Cholesky factor of S⁻¹, (n, r, r)."""
    evidence: Tensor
    """log π_j + log p(y | j), (n,), up to a constant of each measurement."""

    @classmethod
    def component(cls, mixture: Mixture, j: int, data: Coefficients) -> "ComponentPosterior":
        """Returns component j given measurements.

        Raises:
            UserError: If the noise is too weak for float32.
        """
        p, h = data.precision, data.information
        loading = data.analyse(mixture.loading[j])
        w, mean = loading[..., :-1], loading[..., -1]
        gain = 1 / (1 + mixture.noise[j] * p)
        precision = gram(w, gain * p)
        precision.diagonal(dim1=1, dim2=2).add_(1)
        root, failed = torch.linalg.cholesky_ex(precision)
        if failed.any():
            raise UserError(
                "init=mixture cannot be drawn from: the noise is too weak for float32; start "
                "again in a new run_dir with init=gaussian"
            )
        residual = h - p * mean
        projected = _columns(w.mT, gain * residual)
        u = torch.cholesky_solve(projected[..., None], root)[..., 0]
        # Where p = 0 the residual is 0 too.
        square = (gain * residual.square() / p.clamp(min=1e-30)).sum(1)
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1) - gain.log().sum(1)
        evidence = ((projected * u).sum(1) - square - log_det) / 2
        return cls(loading, gain, u, root, evidence + mixture.weight[j].log())

    def expected(self, noise: Tensor, information: Tensor, u: Tensor) -> Tensor:
        """Returns E[z | u, y], (n, D), of factors u, (n, r).

        Arguments:
            noise: ψ, ().
            information: h, (n, D).
            u: u.
        """
        centre = self.loading[..., -1] + _columns(self.loading[..., :-1], u)
        return self.gain * (noise * information + centre)

    def select(self, index: Tensor) -> "ComponentPosterior":
        """Returns the component given some of the measurements."""
        loading = self.loading if len(self.loading) == 1 else self.loading[index]
        return ComponentPosterior(loading, *(field[index] for field in self[1:]))


def gram(w: Tensor, weight: Tensor) -> Tensor:
    """Returns Wᵀ diag(weight) W, (n, r, r), of W (n or 1, D, r) and weights (n, D)."""
    if len(w) > 1 or w.numel() * w.shape[2] > OUTER:
        return (w * weight[..., None]).mT @ w
    outer = w[0, :, :, None] * w[0, :, None, :]  # one product of matrices for all measurements
    return (weight @ outer.flatten(1)).unflatten(1, outer.shape[1:])


def _columns(w: Tensor, u: Tensor) -> Tensor:
    """Returns W u, (n, a), of W (n or 1, a, b) and u (n, b)."""
    return u @ w[0].mT if len(w) == 1 else (w @ u[..., None])[..., 0]


class MixturePosterior(Posterior):
    """The exact posterior of a mixture of Gaussians under a linear channel of known spectrum.

    Of noise whose variance depends on A x, σ_y² is its variance at A μ, as for the Gaussian.

    Arguments:
        prior: The mixture.
        channel: The channel.
    """

    requires = LinearChannel

    def __init__(self, prior: Mixture, channel: LinearChannel) -> None:
        self.prior = prior
        self.channel = channel

    @full_precision
    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape), from the global generators."""
        prior = self.prior.to(measurement.y.device)
        data, given = self.given(measurement)
        label = draw_labels(given)
        z = torch.zeros_like(data.information)
        for j, component in enumerate(given):
            drawn, _ = draw_pair(component, prior.noise[j], data.information)
            z = torch.where((label == j)[:, None], drawn, z)
        return data.synthesise(z).reshape(-1, *self.channel.shape)

    @full_precision
    def mean(self, measurement: Measurement) -> Tensor:
        """Returns E[x | y], (B, *shape)."""
        noise, means = self.prior.noise.to(measurement.y.device), []
        for part in self.blocks(measurement):
            data, given = self.given(part)
            share = torch.stack([g.evidence for g in given]).softmax(dim=0)[..., None]
            each = [g.expected(noise[j], data.information, g.mean) for j, g in enumerate(given)]
            means.append(data.synthesise((share * torch.stack(each)).sum(dim=0)))
        return torch.cat(means).reshape(-1, *self.channel.shape)

    @full_precision
    def log_likelihood(self, measurement: Measurement) -> Tensor:
        """Returns log p(y) of each measurement, (B,), up to a constant of its own."""
        each = [self.given(part)[1] for part in self.blocks(measurement)]
        return torch.cat([torch.stack([g.evidence for g in e]).logsumexp(dim=0) for e in each])

    def under(self, channel: Channel) -> "MixturePosterior":
        """Returns the posterior of the same prior under another linear channel."""
        assert isinstance(channel, LinearChannel)
        return MixturePosterior(self.prior, channel)

    def given(self, measurement: Measurement) -> tuple[Coefficients, list[ComponentPosterior]]:
        """Returns what measurements say of the coefficients, and each component given them."""
        prior = self.prior.to(measurement.y.device)
        data = coefficients(self.channel, measurement, prior)
        return data, [
            ComponentPosterior.component(prior, j, data) for j in range(len(prior.weight))
        ]

    def blocks(self, measurement: Measurement) -> list[Measurement]:
        """Returns the measurements in blocks whose matrices fit the memory."""
        k, dim, rank = self.prior.loading.shape
        size = max(1, BLOCK // (k * max(rank**2, dim)))
        return [measurement.select(slice(i, i + size)) for i in range(0, len(measurement.y), size)]


def draw_labels(given: Sequence[ComponentPosterior]) -> Tensor:
    """Draws j ~ p(j | y) for each measurement, (n,), from the global generators."""
    share = torch.stack([g.evidence for g in given], dim=1).softmax(dim=1)
    # By its quantile: torch.multinomial would make the host wait for the device.
    quantile = torch.rand(len(share), 1, device=share.device)
    return (share.cumsum(dim=1) < quantile).sum(dim=1).clamp(max=len(given) - 1)


def draw_pair(
    given: ComponentPosterior, noise: Tensor, information: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws z ~ p(z | y, j) and its mirror image about the mean, each (n, D)."""
    e = torch.randn_like(given.mean)[..., None]
    shift = torch.linalg.solve_triangular(given.root.mT, e, upper=True)[..., 0]
    centre = given.expected(noise, information, given.mean)
    z = given.expected(noise, information, given.mean + shift)
    z = z + (noise * given.gain).sqrt() * torch.randn_like(z)
    return z, 2 * centre - z


def coefficients(channel: LinearChannel, measurement: Measurement, prior: Mixture) -> Coefficients:
    """Returns what measurements say of the coefficients of x in the basis of AᵀA.

    Arguments:
        channel: The channel, of known spectrum.
        measurement: The measurements.
        prior: The mixture; noise that depends on A x has its variance at the prior's mean.
    """
    n, measurement = len(measurement.y), measurement.to(torch.float64)
    centre = (prior.weight[:, None] * prior.loading[..., -1]).sum(dim=0)
    expected = centre.to(measurement.y).reshape(1, *channel.shape).expand(n, *channel.shape)
    var = channel.noise.variance(channel.apply(expected, measurement.operator), measurement.noise)
    spectrum = channel.spectrum(measurement.operator)
    assert spectrum is not None
    precision, information = measured_coefficients(channel, measurement, spectrum, var)
    p, h = precision.expand_as(information).flatten(1), information.flatten(1)
    measured = p > ROUNDING * p.amax(dim=1, keepdim=True)
    p, h = (torch.where(measured, each, 0).float() for each in (p, h))
    return Coefficients(p, h, spectrum.basis, channel.shape)
