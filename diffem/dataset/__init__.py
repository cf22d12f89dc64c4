"""Datasets: clean images of a benchmark, from which observations are drawn."""

from diffem.dataset.base import ImageDataset, LabelledDataset, Labels, Splits
from diffem.dataset.digits import Digits
from diffem.dataset.hub import HubImages
from diffem.dataset.idx import IdxImages
from diffem.dataset.manifold import Manifold

__all__ = [
    "Digits",
    "HubImages",
    "IdxImages",
    "ImageDataset",
    "LabelledDataset",
    "Labels",
    "Manifold",
    "Splits",
]
