"""Networks: backbones b_θ(x, log σ_t, embedding of y)."""

from diffem.network.mlp import MLP
from diffem.network.unet import UNet

__all__ = ["MLP", "UNet"]
