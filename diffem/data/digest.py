"""A hash that tells one set of measurements from another, in bounded time."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from diffem.corruption import Measurement
from diffem.data.measurements import MeasurementSet

READ_BYTES = 2**26  # of a source that need not fit in memory


def data_digest(*sets: MeasurementSet, others: Iterable[Tensor] = ()) -> str:
    """Returns the sha256 of measurement sets, and of what else a run reads from files.

    Of simulated measurements, the clean images are hashed: the measurements follow from them, and
    their last bits may differ from one type of processor to another. Of measurements that are read
    when they are asked for, at most 64 MiB of rows at even distances are hashed, with their number
    and shape.

    Arguments:
        sets: The sets, in a fixed order.
        others: What other files hold: clean images, an instrument's point spread function.
    """
    digest = hashlib.sha256()
    for part in sets:
        source = part.source
        if part.truth is not None:
            _add(digest, part.truth)
        if not isinstance(source, Measurement):
            one = source.select(slice(1))
            size = sum(field[0].nbytes for field in one)
            count = max(2, min(len(part), READ_BYTES // max(size, 1)))
            rows = torch.arange(count) * (len(part) - 1) // (count - 1)
            for some in rows.split(256):
                for field in source.select(some):
                    _add(digest, field)
        elif part.truth is None:
            for field in source:
                _add(digest, field)
        digest.update(f"{len(part)}".encode())
    for values in others:
        _add(digest, values)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", x: Tensor) -> None:
    digest.update(f"{x.dtype} {list(x.shape)}".encode())
    digest.update(x.detach().cpu().contiguous().numpy().data)
