"""LPIPS: distance of two images in AlexNet's activations, weighted by human judgements."""

import torch
from torch import Tensor, nn

from diffem.corruption import Channel, Measurement
from diffem.metric.metric import Metric
from diffem.metric.score import Score
from diffem.metric.weights import fill, read_weights, weights_file
from diffem.storage.atomic import sha256

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
PUBLISHED = "7be5be79"  # the first digits of its sha256
SMALLEST, ENLARGED = 31, 64  # pixels; AlexNet's last pooling has no output below the first
BATCH = 64


class LPIPS(Metric):
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924).

    The linear weights are part of torchmetrics; AlexNet's are torchvision's. With the weights of
    any other file the score is `lpips_stand_in`. Grey images are repeated to RGB. Images with a
    side below 31 pixels, too small for AlexNet, are first enlarged to 64 × 64 (bilinear).

    Arguments:
        weights: A local copy of alexnet-owt-7be5be79.pth; None downloads it.
        required: As for `Metric`.

    Raises:
        UserError: If the file is missing, cannot be downloaded, or does not fit AlexNet.
    """

    needs_truth = True
    heavy = True

    def __init__(self, weights: str | None = None, *, required: bool = True) -> None:
        super().__init__(required=required)
        self.path = weights_file(weights, URL)
        published = sha256(self.path).startswith(PUBLISHED)
        name, label = ("lpips", "LPIPS") if published else ("lpips_stand_in", "LPIPS stand-in")
        self.score = Score(name, label, better="lower")
        self.network: nn.Module | None = None
        if not published:
            self.build()  # refuses a file that does not fit now, not after the run

    def obstacle(self, channel: Channel, *, truth: bool = True) -> str | None:
        """Returns why the metric cannot be computed; None if it can be."""
        if len(channel.shape) == 3 and channel.shape[0] in (1, 3):
            return super().obstacle(channel, truth=truth)
        return f"needs images with 1 or 3 channels, got the shape {list(channel.shape)}"

    def build(self) -> None:
        """Builds the network, once.

        Raises:
            UserError: If the weights do not fit AlexNet.
        """
        if self.network is not None:
            return
        from torchmetrics.functional.image.lpips import _NoTrainLpips
        from torchvision.models import alexnet

        state = read_weights(self.path)
        backbone = alexnet(weights=None)
        fill(backbone, state, self.path)
        # torchmetrics' public class can only download its backbone.
        network = _NoTrainLpips(net="alex", pnet_rand=True)
        layers = backbone.features.state_dict()  # slice2.3.weight there is 3.weight here
        network.net.load_state_dict(
            {name: layers[name.partition(".")[2]] for name in network.net.state_dict()}
        )
        self.network = network

    def compute(
        self, x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
    ) -> Tensor:
        """Returns the distance of each reconstruction to the clean image, (B,)."""
        return self.distance(x, truth)

    @torch.no_grad()
    def distance(self, x: Tensor, truth: Tensor) -> Tensor:
        """Returns the distance of each pair of images, (B,), at least 0 and 0 if they are equal.

        Arguments:
            x: Images, (B, C, H, W), in [-1, 1]; other values are clipped.
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
