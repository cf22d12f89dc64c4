"""The closed form of a projection's spectrum is an eigendecomposition."""

import pytest
import torch

from diffem.corruption import GaussianNoise, Measurement, Projection, make_channel
from diffem.corruption.projection import eigh_of_few_rows

B = 200


def matrices(name: str, m: int, d: int) -> torch.Tensor:
    """Returns unit rows in float64, (B, m, d), as they are drawn or in a special position."""
    a = Projection((d,), rows=m).draw(B, torch.Generator().manual_seed(0)).double()
    if name == "along the axes":
        a = torch.eye(d, dtype=torch.float64).roll(3, 0)[:m].expand(B, -1, -1) * -1
    elif name == "parallel":
        a = a[:, :1].expand(-1, m, -1)
    elif name == "nearly parallel":
        a = a[:, :1] + 1e-9 * a
    elif name == "orthogonal":
        a = torch.linalg.qr(a.mT).Q.mT
    elif name == "zero":
        a = a * torch.tensor([0.0, 1.0], dtype=torch.float64)[-m:, None]
    elif name == "of other lengths":  # recorded ones need not be of unit length
        a = a * torch.tensor([1e4, 1e-3], dtype=torch.float64)[:m, None]
    return a


@pytest.mark.parametrize(
    "name",
    ["drawn", "along the axes", "parallel", "nearly parallel", "orthogonal", "zero",
     "of other lengths"],
)  # fmt: skip
@pytest.mark.parametrize(("m", "d"), [(1, 2), (1, 5), (2, 3), (2, 5), (2, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_few_rows_in_closed_form(name: str, m: int, d: int, dtype: torch.dtype) -> None:
    a = matrices(name, m, d).to(dtype)
    gram = a.double().mT @ a.double()
    square, v = (part.double() for part in eigh_of_few_rows(a))
    # A reflection takes a dot product and a norm of d terms each: fewer than 3 d + 12 roundings an
    # entry; errors of orthogonal factors add up, relative to the largest entry.
    eps = m * (3 * d + 12) * torch.finfo(dtype).eps
    scale = float(gram.abs().max()) + 1e-30
    assert float((v.mT @ v - torch.eye(d)).abs().max()) < eps
    assert float(((v * square[:, None]) @ v.mT - gram).abs().max()) < eps * scale
    assert float((square - torch.linalg.eigvalsh(gram)).abs().max()) < eps * scale
    assert bool((square.diff(dim=1) >= -eps * scale).all())


def test_the_network_sees_what_the_posterior_depends_on() -> None:
    """Of measurements U y along the directions U A, U orthogonal, it sees the same as of y."""
    channel = make_channel(Projection((5,), rows=2), GaussianNoise(0.1))
    generator = torch.Generator().manual_seed(0)
    y, a, std = channel.draw(torch.randn(B, 5, generator=generator), generator)
    u = torch.linalg.qr(torch.randn(B, 2, 2, generator=generator)).Q
    turned = Measurement((u @ y[..., None])[..., 0], u @ a, std)
    torch.testing.assert_close(channel.embed(turned), channel.embed(Measurement(y, a, std)))
