"""Weights of trained networks: local or downloaded files, read without executing code."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.storage.atomic import load_plain


def weights_file(weights: str | None, url: str) -> Path:
    """Returns the local file of weights or, without one, the published file, downloaded once.

    The download is kept in torch's own cache (`TORCH_HOME`).

    Arguments:
        weights: The local file, or None.
        url: The https address of the published file.

    Raises:
        UserError: If the local file is missing, or the published one cannot be downloaded.
    """
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise UserError(f"weights: no file at {path}; give a local file, or null to download")
        return path
    if not url.startswith("https://"):  # file:// would copy any local file
        raise UserError(f"weights: {url!r} is no https address; give a local file, weights=FILE")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"weights: {url} is out of reach ({error}); give a local copy, weights=FILE"
            ) from error
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file, or a file of `torch.save` without executing code in it.

    Raises:
        UserError: If it is neither, holds something else than a dictionary of tensors, or values
            that are not finite.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_plain(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"weights: {path} holds no weights ({type(error).__name__}); get the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights: {path} holds more than tensors by name; give a state dict")
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"weights: {path} holds NaN or infinity in {bad[0]}; get the file again")
    return state


def fill(network: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads weights into a network.

    Arguments:
        network: The network.
        state: The weights by name.
        path: Their file, for the message.

    Raises:
        UserError: If a weight is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"weights: {path} does not fit {type(network).__name__}; give weights of this network"
        ) from error
