"""Networks see the image, the noise level and the measurement, and train in every size."""

import pytest
import torch
from torch import nn

from diffem.network import MLP, UNet
from diffem.network.unet import AttentionBlock, GroupNorm
from diffem.runtime.errors import UserError

NETWORKS = {
    "mlp": ((5,), lambda shape, cond: MLP(shape, cond, width=32, depth=2, embedding=16)),
    "unet": ((3, 8, 8), lambda shape, cond: UNet(shape, cond, channels=[16, 32], blocks=[1, 1])),
    "odd sides": (
        (1, 7, 9),
        lambda shape, cond: UNet(shape, cond, channels=[16, 32], blocks=[1, 1]),
    ),
    "signals": ((2, 12), lambda shape, cond: UNet(shape, cond, channels=[16, 32], blocks=[1, 1])),
    "attention": (
        (1, 8, 8),
        lambda shape, cond: UNet(shape, cond, channels=[16, 32], blocks=[1, 1], attention=[0, 1]),
    ),
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[tuple[int, ...], nn.Module]:
    shape, build = NETWORKS[request.param]
    torch.manual_seed(0)
    return shape, build(shape, 2).eval()


def test_output_depends_on_every_input(case: tuple[tuple[int, ...], nn.Module]) -> None:
    shape, network = case
    x, c, cond = torch.randn(3, *shape), torch.randn(3), torch.randn(3, 2, *shape[1:])
    y = network(x, c, cond=cond)
    assert y.shape == x.shape
    for changed in (
        network(x + 0.1, c, cond=cond),
        network(x, c + 0.1, cond=cond),
        network(x, c, cond=cond + 0.1),
    ):
        assert not torch.allclose(y, changed, atol=1e-6)


def test_samples_do_not_mix(case: tuple[tuple[int, ...], nn.Module]) -> None:
    shape, network = case
    x, c, cond = torch.randn(3, *shape), torch.randn(3), torch.randn(3, 2, *shape[1:])
    y = network(x, c, cond=cond)
    alone = network(x[1:2], c[1:2], cond=cond[1:2])
    torch.testing.assert_close(y[1:2], alone, rtol=1e-4, atol=1e-5)


def test_one_noise_level_serves_the_batch(case: tuple[tuple[int, ...], nn.Module]) -> None:
    shape, network = case
    x, cond = torch.randn(3, *shape), torch.randn(3, 2, *shape[1:])
    c = torch.tensor(0.3)
    torch.testing.assert_close(network(x, c, cond=cond), network(x, c.expand(3), cond=cond))


def test_attention_stands_on_the_chosen_levels() -> None:
    network = UNet((1, 8, 8), 0, channels=[16, 32], blocks=[2, 1], attention=[0])
    blocks = [m for m in network.modules() if isinstance(m, AttentionBlock)]
    assert len(blocks) == 4  # two down, two up
    assert all(block.attention.qkv_proj.in_features == 16 for block in blocks)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"channels": [20], "blocks": [1]}, "network.channels must be multiples of 16"),
        ({"channels": [16, 32], "blocks": [1]}, "one number for each of network.channels"),
        ({"channels": [16], "blocks": [1], "attention": [1]}, "network.attention must name"),
    ],
)
def test_bad_sizes(kwargs: dict[str, list[int]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        UNet((1, 8, 8), 0, **kwargs)  # type: ignore[arg-type]


def test_unet_refuses_vectors() -> None:
    with pytest.raises(UserError, match="use network=mlp for vectors"):
        UNet((5,), 0, channels=[16], blocks=[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_is_torch_s_in_the_same_memory_format(dtype: torch.dtype) -> None:
    x = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(7)).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    ours, reference = GroupNorm(16, 32, affine=False)(x), torch.nn.functional.group_norm(x, 16)
    torch.testing.assert_close(
        ours, reference, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_the_u_net_has_no_other_group_norm() -> None:
    network = UNet((1, 8, 8), 0, channels=[16, 32], blocks=[1, 1], attention=[1])
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) > 4 and all(isinstance(m, GroupNorm) for m in norms)
