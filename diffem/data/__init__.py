"""Data: clean images of benchmarks, of which measurements are simulated, and real measurements."""

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
