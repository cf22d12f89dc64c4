"""Denoisers as ONNX: E[x | x_t, y] and E[x | x_t] for other runtimes, without a sampler."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._ops import OpOverload
from torch.onnx import OnnxExporterError
from torch.utils._python_dispatch import TorchDispatchMode

from diffem.config.extras import ONNX
from diffem.corruption import Channel, LinearChannel, Measurement
from diffem.corruption.operator import expand
from diffem.denoiser import Conditioning, Denoiser
from diffem.posterior import Conditional, Reflected
from diffem.posterior.ambient import MaskedDenoiser, Restoration
from diffem.posterior.posterior import DenoiserPosterior
from diffem.result.result import Result
from diffem.result.weights import read_weights
from diffem.runtime.errors import UserError
from diffem.runtime.extras import check_installed

TOLERANCE = 1e-4  # of x, whose range is [-1, 1]
BATCHES = (3, 1, 5)  # of the first the graph is traced; the others show that it holds for any
Inputs = tuple[Tensor, ...]
WITHOUT_FORM = {"aten._linalg_eigh", "aten._linalg_svd", "aten.fft_fftfreq"}  # none in ONNX


class Operations(TorchDispatchMode):
    """The names of the operations that torch does meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


class Uncounted(Denoiser):
    """A denoiser that does not count its evaluations, which a graph cannot."""

    def _count(self, images: Tensor) -> None:
        pass


class Unconditional(nn.Module):
    """E[x | x_t].

    Arguments:
        denoiser: The denoiser.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = Uncounted(denoiser.backbone, denoiser.schedule)
        self.inputs: tuple[str, ...] = ("x_t", "t")

    def forward(self, x_t: Tensor, t: Tensor, given: Inputs) -> Tensor:
        """Returns denoised images, (B, *shape).

        Arguments:
            x_t: Noisy images, (B, *shape).
            t: Their times in [0, 1], (B,).
            given: The inputs besides, as `inputs` names them.
        """
        return self.denoiser(x_t, t).mean

    def draw(
        self, n: int, channel: Channel, generator: Generator
    ) -> tuple[Tensor, Tensor, Inputs]:
        """Draws n inputs of forward, x_t of white images."""
        x = torch.randn(n, *channel.shape, generator=generator).clamp(-1, 1)
        t = torch.linspace(0.1, 0.9, n)
        alpha, sigma = (expand(scale, x) for scale in self.denoiser.schedule(t))
        x_t = alpha * x + sigma * torch.randn(x.shape, generator=generator)
        return x_t, t, self.draw_given(x, channel, generator)

    def draw_given(self, x: Tensor, channel: Channel, generator: Generator) -> Inputs:
        """Draws what else is given of images, (B, *shape)."""
        return ()


class Masked(Unconditional):
    """E[x | Ã x_t, Ã]: Ambient Diffusion's, of the mask Ã, (B, 1, *S).

    Arguments:
        denoiser: The denoiser.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.inputs = ("x_t", "t", "mask")

    def forward(self, x_t: Tensor, t: Tensor, given: Inputs) -> Tensor:
        """Returns denoised images, (B, *shape); see `Unconditional`."""
        return MaskedDenoiser(self.denoiser, *given)(x_t, t).mean

    def draw_given(self, x: Tensor, channel: Channel, generator: Generator) -> Inputs:
        """Draws masks that leave half of the pixels."""
        return (torch.rand(x[:, :1].shape, generator=generator).round(),)


class Conditioned(Unconditional):
    """E[x | x_t, y].

    Of y, φ and the noise's parameters, those are inputs that differ from measurement to
    measurement; what the channel has the same for all is in the graph.

    Arguments:
        denoiser: The denoiser.
        channel: The channel.
        condition: How the denoiser is conditioned on a measurement.
    """

    def __init__(self, denoiser: Denoiser, channel: Channel, condition: Conditioning) -> None:
        super().__init__(denoiser)
        self.channel, self.condition = channel, condition
        two = channel.draw(torch.zeros(2, *channel.shape), Generator().manual_seed(0))
        self.same = {
            name: field[:1]
            for name, field in two._asdict().items()
            if name != "y" and torch.equal(field[0], field[1])
        }
        self.inputs = ("x_t", "t", *(name for name in two._fields if name not in self.same))
        self.spectrum = None
        if isinstance(channel, LinearChannel) and "operator" in self.same:
            self.spectrum = channel.spectrum(self.same["operator"])

    def forward(self, x_t: Tensor, t: Tensor, given: Inputs) -> Tensor:
        """Returns denoised images, (B, *shape); see `Unconditional`."""
        fields = dict(zip(self.inputs[2:], given, strict=True))
        fields |= {n: field.expand(len(x_t), *field.shape[1:]) for n, field in self.same.items()}
        condition = self.condition(self.channel, Measurement(**fields), spectrum=self.spectrum)
        return self.denoiser(x_t, t, condition).mean

    def draw_given(self, x: Tensor, channel: Channel, generator: Generator) -> Inputs:
        """Draws measurements."""
        measurement = channel.draw(x, generator)
        return tuple(getattr(measurement, name) for name in self.inputs[2:])


def check_onnx() -> None:
    """Refuses to write ONNX where its packages are not installed.

    Raises:
        UserError: If one is not; it names the command that installs it.
    """
    for package in ONNX:
        check_installed("--onnx", package)


def write_onnx(folder: Path, result: Result, *, prior: Path) -> dict[str, tuple[str, ...]]:
    """Writes posterior.onnx and, if there is a prior, prior.onnx.

    Arguments:
        folder: The folder.
        result: What a run learned, on the CPU.
        prior: The file of the prior's weights.

    Returns:
        The names of the inputs of each file, by its name.

    Raises:
        UserError: If ONNX cannot express a denoiser, or gives something else than torch.
    """
    posterior = result.posterior.posterior
    assert isinstance(posterior, DenoiserPosterior)
    if isinstance(posterior, Reflected):
        raise UserError(
            "--onnx writes E[x | x_t, y] of noisy images, and the denoiser of method=reflected "
            "gives another mean, of folded ones; leave out --onnx"
        )
    if isinstance(posterior, Conditional):
        graph = Conditioned(posterior.denoiser, result.channel, posterior.condition)
    else:
        masked = isinstance(posterior, Restoration)
        graph = (Masked if masked else Unconditional)(posterior.denoiser)
    graphs: Mapping[str, Unconditional] = {"posterior.onnx": graph}
    if result.prior is not None:
        masked = read_weights(prior).about.removed is not None
        denoiser = result.prior.prior.denoiser
        graphs |= {"prior.onnx": (Masked if masked else Unconditional)(denoiser)}
    for name, graph in graphs.items():
        write_graph(folder / name, graph.eval(), result.channel)
    return {name: graph.inputs for name, graph in graphs.items()}


def write_graph(path: Path, graph: Unconditional, channel: Channel) -> None:
    """Writes a denoiser as ONNX and compares it with torch's.

    Raises:
        UserError: If ONNX cannot express it, or the two differ by more than 1e-4.
    """
    generator = Generator().manual_seed(0)
    inputs = [graph.draw(n, channel, generator) for n in BATCHES]
    with torch.no_grad(), Operations() as done:
        graph(*inputs[0])
    for name in sorted(WITHOUT_FORM & done.names):  # tracing finds it after a minute
        raise UserError(_no_form(path, channel, name))
    batch = {0: torch.export.Dim("batch", max=2**20)}
    try:
        with torch.no_grad():
            # Strict: otherwise len(x) would be taken for a constant.
            program = torch.export.export(
                graph,
                inputs[0],
                dynamic_shapes=(batch, batch, tuple(batch for _ in inputs[0][2])),
                strict=True,
            )
            exported = torch.onnx.export(
                program, input_names=list(graph.inputs), output_names=["x"], verbose=False
            )
        assert exported is not None
        exported.save(path)
    except (OnnxExporterError, TorchDynamoException, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:200]
        raise UserError(_no_form(path, channel, reason)) from error
    error = max(_difference(path, graph, *given) for given in inputs)
    if not error <= TOLERANCE:
        raise UserError(
            f"{path.name} differs from torch by {error:.2g} on [-1, 1], more than "
            f"{TOLERANCE:g}; leave out --onnx, or try other versions of onnx and onnxscript"
        )


def _no_form(path: Path, channel: Channel, reason: str) -> str:
    """Returns that ONNX cannot express a denoiser."""
    return (
        f"{path.name} cannot be made: ONNX has no form of this denoiser under {channel} "
        f"({reason}); leave out --onnx"
    )


def _difference(path: Path, graph: Unconditional, x_t: Tensor, t: Tensor, given: Inputs) -> float:
    """Returns the largest difference between what ONNX Runtime and torch make of inputs."""
    import onnxruntime  # type: ignore[import-not-found]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = zip(graph.inputs, (x_t, t, *given), strict=True)
    (found,) = session.run(None, {name: value.numpy() for name, value in named})
    with torch.no_grad():
        return float((torch.from_numpy(found) - graph(x_t, t, given)).abs().max())
