"""The posterior of a mixture of Gaussians against its closed form, and its fit by EM."""

import math
from collections.abc import Sequence

import pytest
import torch
from test_gaussian import CORRUPTIONS, STD, dense, exact_posterior
from torch import Tensor
from torch.distributions import MultivariateNormal

from diffem.corruption import (
    Fourier,
    GaussianNoise,
    LinearGaussianChannel,
    Mask,
    Measurement,
    PointSpread,
    make_channel,
)
from diffem.posterior import mixture as mixture_module
from diffem.posterior import mixture_fit
from diffem.posterior.mixture import (
    ComponentPosterior,
    Mixture,
    MixturePosterior,
    draw_labels,
    gram,
)
from diffem.posterior.mixture_fit import fit_mixture, k_means, principal_components
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

DIM, RANK = 6, 2


def mixture(gen: torch.Generator) -> tuple[Mixture, list[Tensor]]:
    """Returns a mixture of three components and their covariances, float64."""
    loading = torch.randn(3, DIM, RANK + 1, generator=gen)
    noise = 0.05 + 0.2 * torch.rand(3, generator=gen)
    w = loading[..., :-1].double()
    cov = w @ w.mT + noise.double()[:, None, None] * torch.eye(DIM)
    return Mixture(torch.tensor([0.5, 0.2, 0.3]), loading, noise), list(cov)


def exact(
    prior: Mixture, cov: list[Tensor], channel: LinearGaussianChannel, measurement: Measurement
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log π_j p(y | j), (K, B), and each component's means and covariances."""
    a, y = dense(channel, measurement), measurement.y.flatten(1).double()
    terms, means, covs = [], [], []
    for weight, loading, c in zip(prior.weight, prior.loading.double(), cov, strict=True):
        mean, noise = loading[:, -1], STD**2 * torch.eye(a.shape[1])
        marginal = MultivariateNormal(a @ mean, a @ c @ a.mT + noise)
        terms.append(weight.double().log() + marginal.log_prob(y))
        m, v = exact_posterior(mean, c, a, measurement.y.double())
        means.append(m)
        covs.append(v)
    return torch.stack(terms), torch.stack(means), torch.stack(covs)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_posterior_is_exact(name: str) -> None:
    channel, gen = CORRUPTIONS[name], generator(1)
    prior, cov = mixture(gen)
    measurement = channel.draw(torch.randn(5, *channel.shape, generator=gen), gen)
    log_p, means, _ = exact(prior, cov, channel, measurement)
    posterior = MixturePosterior(prior, channel)
    share = log_p.softmax(dim=0)
    expected = (share[..., None] * means).sum(dim=0)
    mean = posterior.mean(measurement).flatten(1).double()
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-4)
    _, given = posterior.given(measurement)
    evidence = torch.stack([g.evidence for g in given]).double()
    torch.testing.assert_close(evidence.softmax(dim=0), share, rtol=1e-3, atol=1e-4)
    # The evidence is up to a constant of each measurement: differences between components are not.
    torch.testing.assert_close(evidence - evidence[0], log_p - log_p[0], rtol=1e-4, atol=2e-3)


def test_autocast_changes_nothing() -> None:
    """A run samples in its trainer's precision, and CUDA has no Cholesky of bfloat16."""
    channel, gen = CORRUPTIONS["mask"], generator(1)
    measurement = channel.draw(torch.randn(200, *channel.shape, generator=gen), gen)

    def results() -> list[Tensor]:
        with seeded("autocast"):
            posterior = fit_mixture(
                channel, measurement, components=2, rank=2, iterations=2, shrinkage=1.0,
                variance=torch.tensor(1.0),
            )  # fmt: skip
            drawn, mean = posterior.draw(measurement), posterior.mean(measurement)
            return [*posterior.prior, drawn, mean, posterior.log_likelihood(measurement)]

    exact = results()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = results()
    for a, b in zip(exact, rounded, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_samples_have_the_moments_of_the_posterior(name: str) -> None:
    channel, gen, n = CORRUPTIONS[name], generator(2), 20_000
    prior, cov = mixture(gen)
    one = channel.draw(torch.randn(1, *channel.shape, generator=gen), gen)
    log_p, means, covs = exact(prior, cov, channel, one)
    share = log_p.softmax(dim=0)[:, 0]
    mean = (share[:, None] * means[:, 0]).sum(dim=0)
    centred = means[:, 0] - mean
    expected = torch.einsum("k,kij->ij", share, covs[:, 0]) + torch.einsum(
        "k,ki,kj->ij", share, centred, centred
    )
    with seeded(3):
        x = MixturePosterior(prior, channel).draw(
            Measurement(*(f.expand(n, *f.shape[1:]) for f in one))
        )
    z = (x.flatten(1).double() - mean) @ torch.linalg.inv(torch.linalg.cholesky(expected)).mT
    assert z.mean(dim=0).abs().max() < 4.5 / math.sqrt(n)
    # 4.5 standard errors of a variance, whose tails are heavier than a Gaussian's by a half.
    assert (torch.cov(z.mT) - torch.eye(DIM)).abs().max() < 4.5 * math.sqrt(3 / n)


def test_one_measurement_has_the_posterior_that_it_has_among_others() -> None:
    channel, gen = CORRUPTIONS["projection"], generator(4)
    prior, _ = mixture(gen)
    both = channel.draw(torch.randn(2, *channel.shape, generator=gen), gen)
    posterior = MixturePosterior(prior, channel)
    one = posterior.mean(both.select(slice(1)))
    torch.testing.assert_close(one, posterior.mean(both)[:1], rtol=1e-5, atol=1e-5)


def test_the_mean_of_many_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    channel, gen = CORRUPTIONS["mask"], generator(14)
    posterior = MixturePosterior(mixture(gen)[0], channel)
    measurement = channel.draw(torch.randn(5, *channel.shape, generator=gen), gen)
    expected = posterior.mean(measurement)
    monkeypatch.setattr(mixture_module, "BLOCK", 1)
    assert len(posterior.blocks(measurement)) == 5
    torch.testing.assert_close(posterior.mean(measurement), expected)


def test_a_few_measurements_are_drawn_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def counted(given: Sequence[ComponentPosterior]) -> Tensor:
        nonlocal calls
        calls += 1
        return draw_labels(given)

    monkeypatch.setattr(mixture_fit, "draw_labels", counted)
    channel, gen = CORRUPTIONS["mask"], generator(15)
    measurement = channel.draw(torch.randn(4, *channel.shape, generator=gen), gen)
    with seeded(16):
        fit_mixture(
            channel, measurement, components=1, rank=2, iterations=2, shrinkage=1.0,
            variance=torch.tensor(1.0),
        )  # fmt: skip
    assert calls == 2 * mixture_fit.MOST_PAIRS


def test_large_loadings_give_the_same_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    gen = generator(13)
    w, weight = torch.randn(1, 5, 3, generator=gen), torch.rand(4, 5, generator=gen)
    expected = gram(w, weight)
    monkeypatch.setattr(mixture_module, "OUTER", 1)
    torch.testing.assert_close(gram(w, weight), expected)


def test_em_finds_the_clusters_behind_masks() -> None:
    """Two clusters, each with one direction; 60 % of the entries are hidden."""
    channel = make_channel(Mask((DIM,), rho=0.6), GaussianNoise(0.1))
    gen = generator(5)
    centre = torch.tensor([[1.0] * DIM, [-1.0] * DIM])
    direction = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]) / 3**0.5
    label = torch.arange(6000) % 2
    x = centre[label] + 0.7 * direction[label] * torch.randn(6000, 1, generator=gen)
    x = x + 0.3 * torch.randn(x.shape, generator=gen)
    measurement = channel.draw(x, gen)
    with seeded(6):
        posterior = fit_mixture(
            channel, measurement, components=None, rank=1, iterations=20, shrinkage=1.0,
            variance=torch.tensor(1.0),
        )  # fmt: skip
    prior = posterior.prior
    assert len(prior.weight) == 2
    order = prior.loading[:, 0, -1].argsort(descending=True)
    mean = prior.loading[order, :, -1]
    # Standard error of a mean over 3,000 images of variance 1/6 with 40 % measured: 0.012.
    torch.testing.assert_close(mean, centre, rtol=0, atol=0.06)
    w = prior.loading[order, :, 0]
    cosine = (w * direction).sum(dim=1).abs() / w.norm(dim=1)
    assert cosine.min() > 0.98
    assert posterior.log_likelihood(measurement).shape == (6000,)


def test_no_component_is_fitted_that_left_out_measurements_speak_against() -> None:
    channel, gen = CORRUPTIONS["mask"], generator(7)
    measurement = channel.draw(torch.randn(400, 1, 2, 3, generator=gen), gen)
    with seeded(8):
        posterior = fit_mixture(
            channel, measurement, components=None, rank=2, iterations=5, shrinkage=1.0,
            variance=torch.tensor(1.0),
        )  # fmt: skip
    assert len(posterior.prior.weight) == 1


@pytest.mark.parametrize("dim", [6, 1500])  # by the whole covariance, and by random projections
def test_principal_components_maximise_the_likelihood(dim: int) -> None:
    gen = generator(9)
    basis = torch.linalg.qr(torch.randn(dim, 2, generator=gen)).Q
    rows = torch.cat([3 * basis[:, :1].mT, 2 * basis[:, 1:].mT])
    with seeded(10):
        w, noise = principal_components(rows, 1)
    rest = 4 / (dim - 1)  # the variance of the second direction, spread over all that are left
    torch.testing.assert_close(noise, torch.tensor(rest), rtol=1e-4, atol=1e-5)
    expected = (9 - rest) * basis[:, :1] @ basis[:, :1].mT
    torch.testing.assert_close(w @ w.mT, expected, rtol=1e-3, atol=1e-3)


def test_k_means_finds_clusters() -> None:
    gen = generator(11)
    x = torch.cat([torch.randn(50, 3, generator=gen) + 20 * i for i in range(3)])
    with seeded(12):
        label = k_means(x, 3)
    assert [len(part.unique()) for part in label.split(50)] == [1, 1, 1]
    assert len(label.unique()) == 3


def test_noise_that_is_too_weak_for_float32_is_refused() -> None:
    """The precision 1/σ² = 1e24 times w wᵀ leaves nothing of the 1 that makes it definite."""
    prior, _ = mixture(generator("weak"))
    prior = prior._replace(noise=torch.full((3,), 1e-30))
    channel = make_channel(Mask((DIM,), rho=0.5), GaussianNoise(1e-12))
    measurement = channel.draw(torch.randn(64, DIM), generator("y"))
    with pytest.raises(UserError, match=r"too weak for float32; .* init=gaussian"):
        MixturePosterior(prior, channel).draw(measurement)


@pytest.mark.parametrize("name", ["fourier of real images", "point spread"])
def test_a_component_that_no_measurement_is_drawn_from_is_left_as_it_is(name: str) -> None:
    operators = {
        "fourier of real images": Fourier((1, 4, 4), acceleration=2.0),
        "point spread": PointSpread(
            (1, 4, 4), kernel=[[0.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0, 1, 0]]
        ),
    }
    # Under such noise the labels are drawn nearly evenly: 6 components lack some of 6.
    channel = make_channel(operators[name], GaussianNoise(5.0))
    measurement = channel.draw(torch.randn(6, 1, 4, 4, generator=generator(0)), generator(1))
    with seeded(0, "fit"):
        posterior = fit_mixture(
            channel,
            measurement,
            components=6,
            rank=2,
            iterations=2,
            shrinkage=1.0,
            variance=torch.tensor(1.0),
        )
    assert posterior.mean(measurement).isfinite().all()
