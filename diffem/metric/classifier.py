"""A small classifier of the run's own data set, in whose features images are compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffem.metric.features import Extractor
from diffem.metric.weights import fill, read_weights
from diffem.runtime.errors import UserError
from diffem.storage.atomic import write_file

FEATURES = 32  # few: some hundred images are enough to estimate their covariance
COMMAND = "diffem classify --dataset NAME --out features/NAME.safetensors"
METADATA = "diffem"  # the entry of the file's metadata that describes the network


class ClassifierNetwork(nn.Module):
    """Three convolutions, 32 features of unit variance and a linear layer to the labels.

    Arguments:
        shape: The shape of an image, (C, H, W).
        labels: The number of labels.
    """

    def __init__(self, shape: Sequence[int], labels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, FEATURES),
            nn.BatchNorm1d(FEATURES, affine=False),  # distances are in standard deviations
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, labels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, (B, labels), of images, (B, C, H, W)."""
        return self.head(self.body(x))


class Classifier(Extractor):
    """The 32 features of a `ClassifierNetwork` before their ReLU; their distance is not the FID.

    Over the training images each feature has a mean of about 0 and a variance of about 1.

    Arguments:
        path: A file that `diffem classify` wrote.

    Raises:
        UserError: If there is no such file, or it does not hold a classifier.
    """

    name = "classifier"
    num_features = FEATURES

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        about = read_about(self.path)
        self.shape = tuple(about["shape"])
        self.network = ClassifierNetwork(self.shape, about["labels"])
        fill(self.network, read_weights(self.path), self.path)
        self.requires_grad_(False).eval()

    def check(self, shape: Sequence[int]) -> None:
        """Checks that images have the shape that the classifier was trained on.

        Raises:
            UserError: For any other shape.
        """
        if tuple(shape) != self.shape:
            raise UserError(
                f"metric.features: the classifier in {self.path} is for images of shape "
                f"{list(self.shape)}, but dataset.shape is {list(shape)}; train one for this data "
                f"set with `{COMMAND}`"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns features, (B, 32), of images, (B, *shape), in [-1, 1]."""
        return self.network.body(x)


def save_classifier(path: Path, network: ClassifierNetwork, about: Mapping[str, Any]) -> None:
    """Writes a classifier to a file, atomically.

    Arguments:
        path: The .safetensors file; its folder is created.
        network: The trained network.
        about: A description; `shape` and `labels` are needed to read the file.

    Raises:
        UserError: If the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(network.state_dict(), metadata={METADATA: json.dumps(dict(about))})
    write_file(path, lambda file: file.write(content))


def is_classifier(path: Path) -> bool:
    """Returns whether a file holds a classifier."""
    try:
        read_about(path)
    except UserError:
        return False
    return True


def read_about(path: Path) -> dict[str, Any]:
    """Returns the description in a classifier's file.

    Raises:
        UserError: If there is no such file, or it does not hold a classifier.
    """
    if not path.is_file():
        raise UserError(f"metric.features: no classifier at {path}; train one with `{COMMAND}`")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"metric.features: {path} is no classifier's file ({error}); train one with "
            f"`{COMMAND}`"
        ) from error
    if not isinstance(about, dict) or not {"shape", "labels"} <= about.keys():
        raise UserError(
            f"metric.features: {path} was not written by `diffem classify`; train one with "
            f"`{COMMAND}`"
        )
    return about
