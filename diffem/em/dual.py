"""The multiplier of a constraint on a loss, in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor


def multiplier(objective: Sequence[Tensor], constraint: Sequence[Tensor], eta: float) -> float:
    """Returns λ of the direction ∇f + λ ∇g, along which f falls and g falls at a given rate.

        λ = max(0, (η ‖∇g‖² - ⟨∇g, ∇f⟩) / ‖∇g‖²)

    so that ⟨∇g, ∇f + λ ∇g⟩ ≥ η ‖∇g‖² (Gong et al. 2021, arXiv 2105.11574, as EraseDiff has it,
    Wu et al. 2024, arXiv 2401.05779).

    Arguments:
        objective: The gradient ∇f, a tensor for each weight.
        constraint: The gradient ∇g, likewise.
        eta: η > 0.
    """
    pairs = list(zip(constraint, objective, strict=True))
    square = sum(g.square().sum() for g, _ in pairs)
    inner = sum((g * f).sum() for g, f in pairs)
    ratio = torch.as_tensor(inner) / torch.as_tensor(square)
    return max(0.0, eta - float(ratio.nan_to_num(eta)))
