"""Over-relaxed E-steps: x̂ spreads less than a sample while samples spread too much.

EM lowers a variance slowly where the noise is strong. Of one Gaussian coefficient whose truth does
not vary, measured with noise of variance σ², a round turns the learned variance v into

    v (1 - v² / (v + σ²)²)

so that from v « σ² on hundreds of rounds are little. An over-relaxed step goes further than EM's
(Salakhutdinov & Roweis 2003, "Adaptive overrelaxed bound optimization methods"): it learns from
the mean of n draws, whose spread about E[x | y] is that of one over √n. It would make a right law
too narrow, so it is taken only while the network's own samples tell that its law is too wide: they
then follow y more closely than the noise allows, and Pearson's χ² of held-out measurements is
below 1, its expectation under the right law (`LinearChannel.residual_chi2`). No truth is needed.

χ² sees what y measures, and no more. So of each coefficient in the operator's basis the share that
y tells of it is the mean's, and the rest that of one draw, which spreads as the network has it.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from diffem.corruption import Channel, LinearChannel, Measurement
from diffem.data.measurements import MeasurementSet
from diffem.denoiser.condition import told_share
from diffem.em.guard import FEW
from diffem.posterior import Posterior, sample_chunks
from diffem.posterior.posterior import has_spectrum

HELD_OUT = 256  # measurements that are drawn to see whether the law is too wide, at most
CLOSE = 0.99  # χ² of a law that is wide by less is taken for right


def fits(channel: Channel) -> bool:
    """Returns whether E-steps under a channel can be over-relaxed."""
    return isinstance(channel, LinearChannel) and has_spectrum(channel)


def relaxed(draws: Sequence[Tensor], channel: Channel, measurement: Measurement) -> Tensor:
    """Returns the mean of draws in what measurements tell, and the first draw in the rest.

    Arguments:
        draws: Draws x ~ p(x | y), each (B, *shape).
        channel: The channel; it `fits`.
        measurement: What they are drawn for.

    Returns:
        x̂, (B, *shape).
    """
    assert isinstance(channel, LinearChannel)
    share, spectrum = told_share(channel, measurement)
    mean = reduce(torch.add, draws) / len(draws)
    return draws[0] + spectrum.synthesise(share * spectrum.analyse(mean - draws[0]))


def spreads_too_much(
    posterior: Posterior,
    heldout: MeasurementSet,
    *,
    seed: int,
    chunk_size: int,
    device: torch.device | str,
) -> bool:
    """Returns whether χ² of samples of held-out measurements is below 1 by more than chance.

    It is if two standard errors above it are below 0.99. One sample is drawn for each of at most
    256 measurements.

    Arguments:
        posterior: The posterior.
        heldout: Measurements that are not trained on, of a linear channel.
        seed: The run's seed.
        chunk_size: The largest number of measurements that are sampled together.
        device: Where to sample.
    """
    channel = heldout.channel
    assert isinstance(channel, LinearChannel)
    if len(heldout) < FEW:
        return False
    given = heldout.select(slice(HELD_OUT))
    chunks = sample_chunks(
        posterior, MeasurementSet(given, channel), 1,
        chunk_size=chunk_size, key=(seed, "relax"), device=device,
    )  # fmt: skip
    (x,) = torch.cat(list(chunks), dim=1)
    chi2 = channel.residual_chi2(given, x).double()
    chi2 = chi2[~chi2.isnan()]  # NaN where nothing was measured
    if len(chi2) < FEW:
        return False
    return (chi2.mean() + 2 * chi2.std() / len(chi2) ** 0.5).item() < CLOSE
