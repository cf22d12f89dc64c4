"""Arrays that were read last, kept in memory for as long as there is room."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

KEPT = 2**28  # bytes


class RecentArrays:
    """Keeps the arrays that were asked for last, up to 256 MiB, and one at least."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the array of a key, kept or loaded now.

        Arguments:
            key: What the array is known by.
            load: Reads it.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = load()
            while len(self._kept) > 1 and sum(x.nbytes for x in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def forget(self, key: Hashable) -> None:
        """Forgets the array of a key, if it is kept."""
        self._kept.pop(key, None)
