"""Over-relaxed E-steps: x̂ spreads less than a sample while samples spread too much.

EM lowers a variance slowly where the noise is strong. Of one Gaussian coefficient whose truth does
not vary, measured with noise of variance σ², a round turns the learned variance v into

    v (1 - v² / (v + σ²)²)

so that from v « σ² on hundreds of rounds are little. An over-relaxed step goes further than EM's
(Salakhutdinov & Roweis 2003, "Adaptive overrelaxed bound optimization methods"): x̂ is the mean of
n draws, whose spread about E[x | y] is that of one over √n. It would make a right law too narrow,
so it is taken only while the network's own samples tell that its law is too wide: they then follow
y more closely than the noise allows, and Pearson's χ² of held-out measurements is below 1, its
expectation under the right law (`LinearChannel.residual_chi2`). No truth is needed. What no
measurement measures χ² does not see: there the mean of draws makes samples spread too little.
"""

import torch

from diffem.corruption import LinearChannel
from diffem.data.measurements import MeasurementSet
from diffem.em.guard import FEW
from diffem.posterior import Posterior, sample_chunks

HELD_OUT = 256  # measurements that are drawn to see whether the law is too wide, at most
CLOSE = 0.99  # χ² of a law that is wide by less is taken for right


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
