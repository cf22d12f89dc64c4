"""How well the groups of measurements fare: the worst one, and the others."""

from typing import Any

from torch import Tensor

from diffem.metric.parts import OTHER_GROUPS, WORST_GROUP


def group_scores(psnr: Tensor, groups: Tensor) -> dict[str, Any]:
    """Returns the mean PSNR of each group, of the group with the worst, and of all others.

    Arguments:
        psnr: The PSNR of the mean of samples of each held-out measurement, (n,).
        groups: The numbers of their groups, (n,).

    Returns:
        `groups`: {number: dB}, and with two groups or more the worst and the mean over the
        measurements of all others.
    """
    means = {int(g): float(psnr[groups == g].double().mean()) for g in groups.unique()}
    scores: dict[str, Any] = {"groups": {str(g): mean for g, mean in means.items()}}
    if len(means) > 1:
        worst = min(means, key=lambda g: means[g])
        others = float(psnr[groups != worst].double().mean())
        scores |= {WORST_GROUP.name: means[worst], OTHER_GROUPS.name: others}
    return scores
