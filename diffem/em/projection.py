"""Gradient projection: a layer's weights change only where its old inputs are not.

A layer maps old inputs a to W a. With an orthonormal basis U of the space in which they lie,

    ΔW ← ΔW (I - U Uᵀ)

leaves W a as it was (gradient projection memory, Saha et al. 2021, arXiv 2103.09762; for diffusion
models Li et al. 2025, One-for-More, arXiv 2502.19848). The gradient is projected, so that the
optimiser's moments are of what may change, and so is the step, which an optimiser that scales the
entries of the gradient turns out of that space again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffem.denoiser import Denoiser
from diffem.em.memory import Memory
from diffem.runtime.ranges import check

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Projection(Memory):
    """Freezes what the network does to the inputs that the earlier run's images give its layers.

    All other parameters, such as biases and norms, are frozen. The prior has a network of its own,
    which learns from D_k alone.

    Arguments:
        path: The earlier run's directory.
        energy: The fraction of a layer's squared inputs that lies in its basis, in (0, 1): the
            more, the less is forgotten, and the less can be learned.
        size: How many of the earlier run's reconstructions the inputs are of.
    """

    remembers = True

    def __init__(self, path: str, energy: float, size: int) -> None:
        super().__init__(path)
        self.energy = float(check("memory.energy", energy))
        self.size = check("memory.size", size)
        self.bases: dict[str, Tensor] = {}

    def learn(
        self, denoiser: Denoiser, batches: Callable[[], object], before: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns an orthonormal basis of each layer's inputs, (D, r) by the layer's name.

        Arguments:
            denoiser: The denoiser, with the earlier run's weights.
            batches: Evaluates it on the earlier run's images, at all times.
            before: The bases that the earlier run had itself, which are extended.
        """
        grams: dict[str, Tensor] = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def add(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
                a = rows_of(layer, inputs[0].detach()).double()
                grams[name] = grams.get(name, 0) + a.T @ a

            return add

        with ExitStack() as hooks:
            for name, layer in layers(denoiser):
                handle = layer.register_forward_pre_hook(watch(name))
                hooks.callback(handle.remove)
            batches()
        return {
            name: extended(gram, before.get(name), self.energy) for name, gram in grams.items()
        }

    def recall(self, tensors: Mapping[str, Tensor], denoiser: Denoiser) -> None:
        """Takes the bases, and freezes the parameters that have none."""
        self.bases = dict(tensors)
        free = {id(weight) for weight, _ in self._projected(denoiser)}
        for parameter in denoiser.parameters():
            parameter.requires_grad_(id(parameter) in free)

    def project_gradients(self, denoiser: Denoiser) -> None:
        """Takes out of the gradients what would change what the layers do to old inputs."""
        for weight, basis in self._projected(denoiser):
            if weight.grad is not None:
                weight.grad.copy_(outside(weight.grad, basis))

    @contextmanager
    def projected(self, denoiser: Denoiser) -> Iterator[None]:
        """Opens a scope of an optimiser step, and projects the step at its end."""
        pairs = [(w, basis, w.detach().clone()) for w, basis in self._projected(denoiser)]
        yield
        with torch.no_grad():
            for weight, basis, held in pairs:
                weight.copy_(held + outside(weight - held, basis))

    def _projected(self, denoiser: Denoiser) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yields the weights that are trained, each with its basis on its device."""
        for name, layer in layers(denoiser):
            if (basis := self.bases.get(name)) is not None:
                weight = layer.weight
                assert isinstance(weight, nn.Parameter)
                self.bases[name] = basis.to(weight.device)
                yield weight, self.bases[name]


def layers(denoiser: Denoiser) -> Iterator[tuple[str, nn.Module]]:
    """Yields the linear layers and convolutions of a denoiser with their names."""
    for name, layer in denoiser.named_modules():
        if isinstance(layer, LAYERS) and getattr(layer, "groups", 1) == 1:
            yield name, layer


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns what a layer's weights are multiplied with, (n, D), of its input.

    Of a convolution it is each window, which the convolution with the identity cuts out.
    """
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    size = layer.weight[0].numel()
    identity = torch.eye(size, dtype=x.dtype, device=x.device).view(size, *layer.weight.shape[1:])
    return layer._conv_forward(x, identity, None).movedim(1, -1).flatten(0, -2)


def outside(weight: Tensor, basis: Tensor) -> Tensor:
    """Returns the part of a weight, (out, …), that is orthogonal to a basis, (D, r)."""
    matrix = weight.flatten(1)
    return (matrix - (matrix @ basis) @ basis.T).view_as(weight)


def extended(gram: Tensor, basis: Tensor | None, energy: float) -> Tensor:
    """Returns an orthonormal basis, (D, r), in which a fraction of the inputs' energy lies.

    Arguments:
        gram: Σ a aᵀ of the inputs, (D, D), float64.
        basis: A basis that it extends, (D, r'); None for none.
        energy: The least fraction.
    """
    held = gram.new_zeros(len(gram), 0) if basis is None else basis.to(gram)
    rest = torch.eye(len(gram)).to(gram) - held @ held.T
    values, vectors = torch.linalg.eigh(rest @ gram @ rest)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = gram.diagonal().sum()
    inside = total - values.sum() + torch.cat([values.new_zeros(1), values.cumsum(0)])
    count = int((inside < energy * total).sum())
    # Of the sum of both the columns are orthonormal but for rounding, which QR removes.
    return torch.linalg.qr(torch.cat([held, vectors[:, :count]], dim=1)).Q.float().contiguous()
