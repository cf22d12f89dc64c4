"""Evidence of measurements under what runs learned: which channel, or which run, made them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffem.corruption import LinearGaussianChannel
from diffem.posterior import Conditional
from diffem.posterior.evidence import estimate_evidence
from diffem.posterior.posterior import Measurements
from diffem.result.candidate import Candidate
from diffem.runtime.rng import seeded


@dataclass(frozen=True)
class EvidenceTable:
    """The evidence of measurements under several candidates."""

    log_evidence: Tensor
    """log p(y) of the measured entries, (K, B), float64."""
    error: Tensor
    """The standard error of each, from the estimates' spread, (K, B); NaN of one estimate."""
    entries: Tensor
    """The number of measured entries, (B,)."""
    surprise: Tensor
    """How much of each entry the first candidate's prior would not have guessed, (B, *shape)."""

    @property
    def per_entry(self) -> Tensor:
        """-log p(y) over the number of measured entries, of the first candidate, (B,).

        Differences of it between measurements tell which are unlike those of the training. NaN
        where nothing was measured.
        """
        return -self.log_evidence[0] / self.entries

    @property
    def probability(self) -> Tensor:
        """The probability of each candidate, if all are as probable before y is seen, (K, B)."""
        return torch.softmax(self.log_evidence, dim=0)


def compare_evidence(
    candidates: Sequence[Candidate],
    measurements: Sequence[Measurements],
    *,
    n: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> EvidenceTable:
    """Returns the evidence of measurements under candidates, from the same noise for all.

    Arguments:
        candidates: The candidates, of images of one shape.
        measurements: For each of them the measurements, under its channel.
        n: The number of estimates of each.
        seed: The seed; a chunk's draws depend on it and the chunk's place alone.
        advance: Called after each chunk of each candidate.
    """
    sampling = candidates[0].result.posterior.sampling
    count, size = len(measurements[0]), sampling.chunk_size
    logs, entries, surprises = [], torch.zeros(count), []
    for candidate, rows in zip(candidates, measurements, strict=True):
        channel, parts = candidate.channel, []
        assert isinstance(channel, LinearGaussianChannel)
        posterior, prior = candidate.result.posterior.posterior, candidate.result.prior
        assert isinstance(posterior, Conditional) and prior is not None
        for start in range(0, count, size):
            y = rows.select(slice(start, start + size)).to(sampling.device)
            with (
                torch.no_grad(),
                sampling.context(),
                seeded(seed, "evidence", start, device=sampling.device),
            ):
                found = estimate_evidence(posterior.under(channel), prior.prior.denoiser, y, n=n)
            parts.append(found.log_evidence.cpu())
            if candidate is candidates[0]:
                surprises.append(found.surprise.float().cpu())
                measured = channel.measured_mask(y.y, y.operator).flatten(1).sum(dim=1)
                entries[start : start + size] = measured.cpu()
            advance()
        logs.append(torch.cat(parts, dim=1))
    each = torch.stack(logs)  # (K, n, B)
    error = each.std(dim=1) / n**0.5 if n > 1 else torch.full_like(each[:, 0], torch.nan)
    return EvidenceTable(each.mean(dim=1), error, entries, torch.cat(surprises))
