"""How samples are drawn: where, in which precision, how many together, and from which seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch

from diffem.runtime.device import computes_bfloat16, computes_float16
from diffem.runtime.errors import UserError
from diffem.runtime.rng import default_float32

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn: where, in which precision, how many together, and from which seed."""

    device: torch.device
    """Where to sample."""
    precision: str
    """A Lightning precision: 32-true, bf16-mixed or 16-mixed."""
    chunk_size: int
    """The largest number of images that are sampled together; the last bits depend on it."""
    seed: int
    """The seed of a call that gives none: the run's own."""

    def chosen(self, seed: int | None) -> int:
        """Returns a seed that was given, or the run's own.

        Raises:
            UserError: If it is no whole number.
        """
        if seed is None:
            return self.seed
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise UserError(f"seed must be a whole number, got {seed!r}")
        return int(seed)  # a number of numpy's would be another key

    @contextmanager
    def context(self) -> Iterator[None]:
        """Opens a scope in the run's precision; in float32 where the device lacks its numbers."""
        dtype = AUTOCAST[self.precision]
        computes = computes_bfloat16 if dtype is torch.bfloat16 else computes_float16
        if not computes(self.device):
            dtype = None
        with default_float32():
            if dtype is None:
                yield
            else:
                with torch.autocast(self.device.type, dtype=dtype):
                    yield
