"""Inception v3 features: FID, KID and IS, if the weights are the published ones."""

import io
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffem.metric.features import Extractor, check_rgb, eight_bit_rgb
from diffem.metric.frechet import frechet_distance
from diffem.metric.score import Score
from diffem.metric.weights import read_weights, weights_file
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded
from diffem.storage.atomic import sha256

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
PUBLISHED = "6726825d"  # the first digits of its sha256
SUBSET, SUBSETS = 1000, 100  # Bińkowski et al. use 1,000 images a subset


class Inception(Extractor):
    """torch-fidelity's port of the FID's Inception v3, 2,048 features.

    The Fréchet distance is called FID only with the published weights. With any other file the
    only score is `fd_inception_stand_in`.

    Arguments:
        weights: A local copy of weights-inception-2015-12-05-6726825d.pth; None downloads it.

    Raises:
        UserError: If the file is missing, cannot be downloaded, or does not fit Inception v3.
    """

    num_features = 2048

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.path = weights_file(weights, URL)
        self.published = sha256(self.path).startswith(PUBLISHED)
        self.name = "inception" if self.published else "inception_stand_in"
        self.network: nn.Module | None = None
        if not self.published:
            self.build()  # refuses a file that does not fit now, not after the run

    def build(self) -> None:
        """Builds the network, once.

        Raises:
            UserError: If the weights do not fit Inception v3.
        """
        if self.network is not None:
            return
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # torch-fidelity unpickles files without checks: it gets a copy that was read safely.
        copy = io.BytesIO()
        torch.save(read_weights(self.path), copy)
        copy.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=copy
            )
        except RuntimeError as error:
            raise UserError(
                f"weights: {self.path} does not fit Inception v3; give {URL.rpartition('/')[2]}"
            ) from error

    def check(self, shape: Sequence[int]) -> None:
        """Checks that a shape is that of RGB or grey images.

        Raises:
            UserError: For any other shape.
        """
        check_rgb("metric.features: Inception", shape)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features, (B, 2048), of images, (B, C, H, W), in [-1, 1]."""
        self.build()
        assert self.network is not None
        return self.network(eight_bit_rgb(x))[0]

    @property
    def scores(self) -> list[Score]:
        """What `compare` returns."""
        if not self.published:
            return super().scores
        return [
            Score("fid", "FID", better="lower", images=2),
            Score("kid", "KID", better="lower", images=2),
            Score("inception_score", "Inception score", better="higher", images=2),
        ]

    def compare(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        """Returns FID, KID and IS of a set's features, (N, 2048), against (N', 2048).

        With weights other than the published ones it returns only `fd_inception_stand_in`.
        """
        if not self.published:
            return super().compare(features, reference)
        self.build()
        assert isinstance(self.network, nn.Module)
        head = nn.Linear(self.num_features, 1008, bias=False)  # logits_unbiased, as in the paper
        head.weight = self.network.fc.weight  # type: ignore[union-attr,assignment]
        return {
            "fid": frechet_distance(features, reference),
            "kid": kernel_distance(features, reference),
            "inception_score": inception_score(features, head),
        }


@torch.no_grad()
def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Returns the squared MMD with the kernel (⟨a, b⟩ / F + 1)³, as a mean over random subsets.

    Bińkowski et al. (2018, arXiv 1801.01401). The estimate is unbiased. The mean is over 100
    subsets of 1,000 features; sets that are not larger are compared as they are.

    Arguments:
        features: Features, (N, F), N >= 2.
        reference: Features, (N', F), N' >= 2.
    """
    from torchmetrics.image.kid import KernelInceptionDistance  # takes seconds to import

    size = min(SUBSET, len(features), len(reference))
    subsets = 1 if size == max(len(features), len(reference)) else SUBSETS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features.*")
        distance = KernelInceptionDistance(
            feature=nn.Identity(), subsets=subsets, subset_size=size, sync_on_compute=False
        )
    distance.update(reference, real=True)
    distance.update(features, real=False)
    with seeded("kid"):
        return float(distance.compute()[0])


@torch.no_grad()
def inception_score(features: Tensor, head: nn.Module) -> float:
    """Returns exp E KL(p(label | x) ‖ p(label)), as a mean over 10 splits; in [1, labels].

    Salimans et al. (2016, arXiv 1606.03498).

    Arguments:
        features: Features, (N, F), N >= 2.
        head: The map from features to logits.
    """
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features.*")
        score = InceptionScore(feature=head, splits=10, sync_on_compute=False)
    score.update(features)
    with seeded("inception score"):
        return float(score.compute()[0])
