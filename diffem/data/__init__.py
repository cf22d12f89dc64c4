"""Data: benchmarks, whose clean images measurements are simulated from, and measurements of one's own."""

from diffem.data.digits import Digits
from diffem.data.files import MeasurementFiles
from diffem.data.hub import HubImages
from diffem.data.idx import IdxImages
from diffem.data.manifold import Manifold
from diffem.data.source import ImageDataset, LabelledDataset, Labels, Splits

__all__ = [
    "Digits",
    "HubImages",
    "IdxImages",
    "ImageDataset",
    "LabelledDataset",
    "Labels",
    "Manifold",
    "MeasurementFiles",
    "Splits",
]
