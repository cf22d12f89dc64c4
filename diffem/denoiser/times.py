"""Training times: t ~ p(t) on [0, 1], an even mixture of Beta distributions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class BetaMixture:
    """p(t) = mean over components of Beta(t; a, b).

    Arguments:
        components: Pairs (a, b), each positive; one pair is a plain Beta distribution.

    Raises:
        UserError: If there is no component or a parameter is not positive.
    """

    def __init__(self, components: Sequence[Sequence[float]]) -> None:
        if not components or any(not isinstance(c, Sequence) or len(c) != 2 for c in components):
            raise UserError(
                "m_step.times.components must be pairs [a, b] of positive numbers, "
                f"got {components}"
            )
        for pair in components:
            check("m_step.times.components", pair)
        self.components = torch.tensor([list(c) for c in components], dtype=torch.float32)

    def sample(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Draws n times, (n,), from the global generators."""
        choice = torch.randint(len(self.components), (n,), device=device)
        a, b = self.components.to(device)[choice].unbind(dim=1)
        # Checking the arguments would make the host wait for the device at each step.
        return torch.distributions.Beta(a, b, validate_args=False).sample()
