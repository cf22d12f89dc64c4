"""Denoiser: d_θ(x_t, t, y) ≈ E[x | x_t, y], preconditioned.

Karras et al. (2022, arXiv 2206.00364) precondition a network by the noise level σ of its input.
Here the input is first fused with what y measures. In the basis V of AᵀA = V diag(s²) Vᵀ, both
x_t and y measure each coefficient of z = Vᵀ x by itself, and together they are worth a single
measurement z̄ of variance σ²:

    1/σ² = α_t²/σ_t² + s²/σ_y²,   z̄ = σ² Vᵀ (α_t x_t / σ_t² + Aᵀ y / σ_y²)

EDM's preconditioning follows with this σ, coefficient by coefficient. Where y measures nothing
(missing pixels, no measurement at all) it is EDM's own. Where AᵀA has no basis at hand, y is
brought into the output (`diffem.denoiser.consistency`).
"""

from collections.abc import Callable

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.noise import Schedule
from torch import Tensor, nn

from diffem.corruption import ENTRIES, Spectrum
from diffem.corruption.operator import expand
from diffem.denoiser.condition import Condition

PRECISE = 25.0  # the largest precision s²/σ_y² of a measured coefficient in the loss's weight


Perturbation = Callable[[Schedule, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Draws x_t of images x, (B, *shape), at times t, (B,), under a schedule; returns x_t and what a
denoiser predicts of it."""


def add_noise(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x_t = α_t x + σ_t z, z from the global generators, and x, each (B, *shape)."""
    alpha_t, sigma_t = (expand(s, x) for s in schedule(t))
    return alpha_t * x + sigma_t * torch.randn_like(x), x


class Denoiser(AzulaDenoiser):
    """Preconditioned denoiser of p(x | x_t, y), or of p(x | x_t) without a condition.

        d_θ = V [c_skip z̄ + c_out Vᵀ b_θ(V c_in z̄, log(σ_t / α_t), embedding of y)]

    Arguments:
        backbone: The network b_θ.
        schedule: The noise schedule α_t, σ_t.

    Attributes:
        nfe: The number of function evaluations since it was last taken: images that went through
            the network, forward or backward.
    """

    def __init__(self, backbone: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.backbone = backbone
        self.schedule = schedule
        self.nfe = 0

    def forward(  # type: ignore[override]
        self, x_t: Tensor, t: Tensor, condition: Condition | None = None
    ) -> DiracPosterior:
        """Returns the denoised images as the mean of a Dirac posterior.

        Arguments:
            x_t: Noisy images, (B, *shape).
            t: Times in [0, 1], (B,) or ().
            condition: The measurement's condition.
        """
        alpha_t, sigma_t = self.schedule(t)
        noise_level = torch.log(sigma_t / alpha_t)
        z = x_t / expand(alpha_t, x_t)
        precision = expand((alpha_t / sigma_t) ** 2, x_t)
        spectrum, embedding = Spectrum(ENTRIES, precision), None
        if condition is not None:
            spectrum, embedding = condition.spectrum, condition.embedding
            fused = precision + condition.precision
            z = (precision * spectrum.analyse(z) + condition.information) / fused
            precision = fused
        var = 1 / precision
        c_in = torch.rsqrt(1 + var)  # EDM, Table 1, σ_data = 1
        output = self.backbone(spectrum.synthesise(c_in * z), noise_level, cond=embedding)
        self._count(output)
        if output.requires_grad:
            output.register_hook(self._count)
        output = spectrum.analyse(output.to(x_t.dtype))
        mean = spectrum.synthesise(c_in**2 * z + var.sqrt() * c_in * output)
        if condition is not None and condition.consistency is not None:
            mean = condition.consistency.correct(mean, 1 + precision)
        return DiracPosterior(mean)

    def fused_noise(self, noise: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns white noise given the variance of the fused measurement, (B, *shape).

        Arguments:
            noise: White noise, (B, *shape).
            t: Times in [0, 1], (B,) or ().
            condition: The measurement's condition.
        """
        alpha_t, sigma_t = self.schedule(t)
        precision = expand((alpha_t / sigma_t) ** 2, noise)
        if condition is None:
            return noise * torch.rsqrt(precision)
        return condition.spectrum.synthesise(noise * torch.rsqrt(precision + condition.precision))

    def fused_start(self, noise: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns x_t whose fusion with y is what y alone says plus noise of the fused variance.

            x_t = α_t V (σ_t²/α_t² √(α_t²/σ_t² + s²/σ_y²) ε)

        Arguments:
            noise: White noise ε, (B, *shape).
            t: Times in [0, 1], (B,) or ().
            condition: The measurement's condition.
        """
        alpha_t, sigma_t = (expand(s, noise) for s in self.schedule(t))
        if condition is None:
            return sigma_t * noise
        precision = (alpha_t / sigma_t) ** 2
        scale = (precision + condition.precision).sqrt() / precision
        return alpha_t * condition.spectrum.synthesise(scale * noise)

    def loss_weight(self, t: Tensor, condition: Condition | None, like: Tensor) -> Tensor:
        """Returns the weight w of the squared error of each coefficient, as `loss` has it.

        Arguments:
            t: Times in [0, 1], (B,).
            condition: The measurement's condition.
            like: A tensor of the shape (B, *shape), which w broadcasts against.
        """
        alpha_t, sigma_t = (expand(s, like) for s in self.schedule(t))
        w = (alpha_t / sigma_t) ** 2 + 1
        return w if condition is None else w + condition.precision.clamp(max=PRECISE)

    def loss(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition | None = None,
        *,
        perturb: Perturbation = add_noise,
        weight: Tensor | float = 1.0,
        basis: Spectrum | None = None,
    ) -> Tensor:
        """Returns the mean of w (d_θ(x_t, t, y) - x)² over batch and coefficients, weighted.

        w = α_t²/σ_t² + s²/σ_y² + 1 is EDM's weight at the fused level σ, by which all levels count
        alike for the network; without a fused y it is the weight α_t²/σ_t² + 1 of DiffEM. What y
        measured better than to a standard deviation of 1/5 has little left to learn, and its
        s²/σ_y² counts as 25: more of it would be at the cost of what was not measured.

        Arguments:
            x: Images, (B, *shape); x_t is drawn from the global generators.
            t: Times in [0, 1], (B,).
            condition: The condition of fresh measurements of x.
            perturb: Draws x_t, and says what the denoiser predicts of it in place of x.
            weight: A factor of the squared error: 0 leaves an entry out.
            basis: The basis in whose coefficients the error is weighted; None for the entries.
        """
        x_t, target = perturb(self.schedule, x, t)
        w = self.loss_weight(t, condition, x)
        error = self(x_t, t, condition).mean - target
        fused = Spectrum(ENTRIES, w) if condition is None else condition.spectrum
        error = w.sqrt() * fused.analyse(error)
        if basis is not None:
            error = basis.analyse(fused.synthesise(error))
        return (weight * error.square()).mean()

    def _count(self, images: Tensor) -> None:
        self.nfe += len(images)

    def take_nfe(self) -> int:
        """Returns the number of function evaluations since the last call."""
        nfe, self.nfe = self.nfe, 0
        return nfe

    def uncounted(self) -> "Denoiser":
        """Returns a denoiser of the same network whose evaluations are not counted here."""
        return Denoiser(self.backbone, self.schedule)
