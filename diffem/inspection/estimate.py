"""A number that was estimated, and how certain it is."""

from dataclasses import dataclass

import numpy as np

CERTAIN = 4.0  # standard errors of a dependence that is reported


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        error = float(f"{self.error:.2g}")
        places = 0 if error == 0 else max(0, 1 - int(np.floor(np.log10(error))))
        if places > 6 or abs(self.value) >= 1e7:
            return f"{self.value:.4g} ± {error:.2g}"
        return f"{self.value:.{places}f} ± {error:.{places}f}"
