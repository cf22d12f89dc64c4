"""Networks: backbones b_θ(x_t, log σ_t, embedding of y) of denoisers."""

from diffem.network.mlp import MLP
from diffem.network.unet import UNet

__all__ = ["MLP", "UNet"]
