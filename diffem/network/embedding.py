"""Embedding of the noise level log σ_t, used by all networks."""

from azula.nn.layers import SineEncoding
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """Maps c = log(σ_t / α_t) to features by a sine encoding and a two-layer perceptron.

    Arguments:
        features: The number of features F, even.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        # Frequencies of 10 … 0.1 in c: changes of σ_t by about a tenth are resolved.
        self.encoding = SineEncoding(features, omega=1e2)
        self.mlp = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, features)
        )

    def forward(self, c: Tensor) -> Tensor:
        """Returns features, (B, F) or (F,), of the noise level, (B,) or ()."""
        return self.mlp(self.encoding(10 * c))
