"""LPIPS: distance of two images in AlexNet's activations, weighted as people judge it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffem.metric.features import check_rgb
from diffem.metric.weights import fill, read_weights, weights_file
from diffem.storage.atomic import sha256

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
PUBLISHED = "7be5be79"  # the first digits of its sha256
SMALLEST, ENLARGED = 31, 64  # pixels; AlexNet's last pooling has no output below the first
BATCH = 64


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924).

    The linear weights are in torchmetrics, AlexNet's are torchvision's. With any other backbone
    the score is `lpips_stand_in`. Grey images are repeated to RGB; images with a side below 31
    pixels, which AlexNet cannot take, are first enlarged to 64 × 64 (bilinear).

    Arguments:
        weights: A local copy of alexnet-owt-7be5be79.pth; None downloads it.

    Attributes:
        name: "lpips" or "lpips_stand_in".

    Raises:
        UserError: If there is no such file, it is out of reach, or not AlexNet's.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.path = weights_file(weights, URL)
        published = sha256(self.path).startswith(PUBLISHED)
        self.name = "lpips" if published else "lpips_stand_in"
        self.network: nn.Module | None = None
        if not published:
            self.build()  # a file that does not fit is told at once, not after the run

    def check(self, shape: Sequence[int]) -> None:
        """Accepts RGB and grey images.

        Raises:
            UserError: For any other shape.
        """
        check_rgb("metric.lpips", shape)

    def build(self) -> None:
        """Builds the network, once.

        Raises:
            UserError: If the weights are not AlexNet's.
        """
        if self.network is not None:
            return
        from torchmetrics.functional.image.lpips import _NoTrainLpips
        from torchvision.models import alexnet

        backbone = alexnet(weights=None)
        fill(backbone, read_weights(self.path), self.path)
        # torchmetrics' public class can only download its backbone.
        network = _NoTrainLpips(net="alex", pnet_rand=True)
        layers = backbone.features.state_dict()  # slice2.3.weight there is 3.weight here
        network.net.load_state_dict(
            {name: layers[name.partition(".")[2]] for name in network.net.state_dict()}
        )
        self.network = network

    @torch.no_grad()
    def forward(self, x: Tensor, truth: Tensor) -> Tensor:
        """Returns the distance of each pair of images, (B,), at least 0 and 0 if they are equal.

        Arguments:
            x: Images, (B, C, H, W), in [-1, 1]; what lies outside is clipped.
            truth: Images, (B, C, H, W).
        """
        self.build()
        assert self.network is not None
        self.network.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            parts = [
                self.network(self._prepare(a), self._prepare(b)).flatten()
                for a, b in zip(x.split(BATCH), truth.split(BATCH), strict=True)
            ]
        return torch.cat(parts)

    def _prepare(self, x: Tensor) -> Tensor:
        x = x.float().clamp(-1, 1).expand(-1, 3, -1, -1)
        if min(x.shape[2:]) < SMALLEST:
            size = (ENLARGED, ENLARGED)
            x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return x
