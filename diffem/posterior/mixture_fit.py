"""Fits a mixture of Gaussians to measurements by Monte Carlo EM (Wei & Tanner 1990)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffem.corruption import LinearChannel, Measurement
from diffem.corruption.operator import full_precision
from diffem.posterior.mixture import Mixture, MixturePosterior, draw_labels, draw_pair

FLOOR = 1e-3  # ψ is at least FLOOR times the data's variance: a pixel may never vary
PAIRS = 8192  # drawn in an iteration: at least one for each measurement, at most MOST_PAIRS
MOST_PAIRS = 32
DENSE = 1024  # entries of x up to which principal components come from the whole covariance
CLUSTERINGS = 20  # iterations of k-means
HELD_OUT = 10  # every so many measurements one, where the number of components is chosen


@full_precision
def fit_mixture(
    channel: LinearChannel,
    measurement: Measurement,
    *,
    components: int | None,
    rank: int,
    iterations: int,
    shrinkage: float,
    variance: Tensor,
    advance: Callable[[], None] = lambda: None,
) -> MixturePosterior:
    """Fits a mixture of Gaussians to measurements by Monte Carlo EM.

    First one Gaussian, from N(0, variance · I); the clusters of its posterior means are the first
    components. E-step: pairs of exact posterior samples, mirrored about their component's mean.
    M-step: the mean and the principal components of each component's samples. Draws from the
    global generators.

    Arguments:
        channel: The channel, of known spectrum.
        measurement: The measurements, (N, …).
        components: The number K of components; None doubles it from 1 while a tenth of the
            measurements, which are then left out, become more likely by a standard error.
        rank: The largest rank r.
        iterations: The number of EM iterations of the Gaussian, and again of the mixture.
        shrinkage: To how many more images, of the components' mean covariance, each component is
            fitted, > 0.
        variance: What the Gaussian starts from, (), which stays in directions that no measurement
            measures.
        advance: Called after each iteration of the first Gaussian and of the mixture.
    """
    fit = _Fit(channel, min(rank, math.prod(channel.shape) - 1), shrinkage, variance)
    one = fit.start(measurement.y.device)
    for _ in range(iterations):
        one = fit.iterate(one, measurement)
        advance()

    def grow(
        count: int, chosen: Measurement, advance: Callable[[], None] = lambda: None
    ) -> MixturePosterior:
        mixture = fit.split(one, chosen, count)
        for _ in range(iterations):
            mixture = fit.iterate(mixture, chosen)
            advance()
        return mixture

    components = None if components is None else min(components, len(measurement.y))
    if components is None:
        held = torch.arange(len(measurement.y), device=measurement.y.device) % HELD_OUT == 0
        train, test = measurement.select(~held), measurement.select(held)
        components, best = 1, one.log_likelihood(test)
        while 4 * components * HELD_OUT <= len(measurement.y):
            likelihood = grow(2 * components, train).log_likelihood(test)
            gain = likelihood - best
            if gain.mean() <= gain.std() / len(gain) ** 0.5:
                break
            components, best = 2 * components, likelihood
    return one if components == 1 else grow(components, measurement, advance)


class _Fit(NamedTuple):
    """What all iterations share; see `fit_mixture`."""

    channel: LinearChannel
    rank: int
    shrinkage: float
    variance: Tensor

    def start(self, device: torch.device) -> MixturePosterior:
        """Returns N(0, variance · I)."""
        size = math.prod(self.channel.shape)
        loading = torch.zeros(1, size, self.rank + 1, device=device)
        prior = Mixture(loading.new_ones(1), loading, self.variance.to(loading).reshape(1))
        return MixturePosterior(prior, self.channel)

    def iterate(self, posterior: MixturePosterior, measurement: Measurement) -> MixturePosterior:
        """Returns the posterior after one iteration of EM."""
        x, mass = self.draw(posterior, measurement)
        previous = posterior.prior.loading[..., -1]
        mean = torch.stack(
            [e.mean(dim=0) if len(e) else m for e, m in zip(x, previous, strict=True)]
        )
        rows = [
            (e - m) * (c / max(len(e), 1)).sqrt() for e, m, c in zip(x, mean, mass, strict=True)
        ]
        pooled, noise = principal_components(torch.cat(rows) / mass.sum().sqrt(), self.rank)
        fitted = [(pooled, noise)]
        if len(rows) > 1:  # each is drawn towards the pooled covariance
            fitted = []
            for row, count in zip(rows, mass, strict=True):
                total = count + self.shrinkage
                both = torch.cat([row, self.shrinkage**0.5 * pooled.mT]) / total.sqrt()
                w, rest = principal_components(both, self.rank)
                fitted.append((w, rest + noise * self.shrinkage / total))
        loading = torch.cat([torch.stack([w for w, _ in fitted]), mean[..., None]], dim=2)
        floor = FLOOR * self.variance.to(loading)
        psi = torch.stack([rest for _, rest in fitted]).clamp(min=floor)
        weight = (mass + 1) / (mass + 1).sum()
        return MixturePosterior(Mixture(weight, loading, psi), self.channel)

    def draw(
        self, posterior: MixturePosterior, measurement: Measurement
    ) -> tuple[list[Tensor], Tensor]:
        """Draws pairs of each component's images, and how many measurements they stand for."""
        prior = posterior.prior
        pairs = min(MOST_PAIRS, -(-PAIRS // len(measurement.y)))
        drawn = [[prior.loading.new_zeros(0, prior.loading.shape[1])] for _ in prior.weight]
        for part in posterior.blocks(measurement):
            data, given = posterior.given(part)
            for _ in range(pairs):
                label = draw_labels(given)
                for j, component in enumerate(given):
                    index = (label == j).nonzero()[:, 0]
                    if not len(index):  # of which MKL has no Fourier transform
                        continue
                    own = data.select(index)
                    pair = draw_pair(component.select(index), prior.noise[j], own.information)
                    drawn[j].extend(own.synthesise(z) for z in pair)
        x = [torch.cat(each) for each in drawn]
        return x, torch.tensor([len(each) / (2 * pairs) for each in x]).to(prior.weight)

    def split(
        self, one: MixturePosterior, measurement: Measurement, count: int
    ) -> MixturePosterior:
        """Returns a mixture with the means of clusters and the covariance of one Gaussian."""
        x = one.mean(measurement).flatten(1)
        label = k_means(x, count)
        member = torch.nn.functional.one_hot(label, count).to(x)
        size = member.sum(dim=0)
        mean = member.mT @ x / size.clamp(min=1)[:, None]
        w = one.prior.loading[..., :-1].expand(count, -1, -1)
        prior = Mixture(
            (size + 1) / (size + 1).sum(),
            torch.cat([w, mean[..., None]], dim=2),
            one.prior.noise.expand(count),
        )
        return MixturePosterior(prior, self.channel)


def principal_components(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns W, (D, r), and ψ, (), of the covariance rowsᵀ rows, rows (m, D), r < D.

    They maximise the likelihood (Tipping & Bishop 1999, "Probabilistic principal component
    analysis"): ψ is the mean variance of the directions that W leaves out.
    """
    dim = rows.shape[1]
    total = rows.double().square().sum()
    if dim <= DENSE:
        value, vector = torch.linalg.eigh(rows.double().mT @ rows.double())
        value, vector = value[dim - rank :], vector[:, dim - rank :]
    else:
        _, root, vector = torch.svd_lowrank(rows, q=min(rank + 8, *rows.shape))
        value, vector = root[:rank].double().square(), vector[:, :rank].double()
    rest = (total - value.sum()).clamp(min=0) / (dim - rank)
    w = vector * (value - rest).clamp(min=0).sqrt()
    if w.shape[1] < rank:  # fewer rows than directions
        w = torch.cat([w, w.new_zeros(dim, rank - w.shape[1])], dim=1)
    return w.to(rows), rest.to(rows)


def k_means(x: Tensor, count: int) -> Tensor:
    """Returns the cluster of each of x, (N, D), from Lloyd's iterations: (N,)."""
    centre = x[torch.randperm(len(x), device=x.device)[:count]]
    label = torch.cdist(x, centre).argmin(dim=1)
    for _ in range(CLUSTERINGS):
        member = torch.nn.functional.one_hot(label, count).to(x)
        size = member.sum(dim=0)[:, None]
        centre = torch.where(size > 0, member.mT @ x / size.clamp(min=1), centre)
        label = torch.cdist(x, centre).argmin(dim=1)
    return label
