"""Builds the objects that a configuration describes: what Hydra's `instantiate` does, with less.

A node with a `_target_` becomes a call of that class with the node's other keys as keyword
arguments, inner nodes first; with `_partial_: true` a functools.partial of it. Which targets are
allowed is checked before, by `check_targets`.
"""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf

from diffem.runtime.errors import UserError

TARGET, PARTIAL = "_target_", "_partial_"


def build(node: Any, key: str, **given: Any) -> Any:  # noqa: ANN401 - what the node describes
    """Returns the object that a node of a configuration describes.

    Arguments:
        node: A node of an OmegaConf configuration, or plain types without interpolations.
        key: The node's full key, for messages.
        given: Further keyword arguments of the outermost target; they win over the node's.

    Raises:
        UserError: If a class cannot be imported or refuses its arguments; it names the key.
        MissingMandatoryValue: If a value that must be given is not.
    """
    plain = node
    if OmegaConf.is_config(node):
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    return _build(plain, key, given)


def locate(target: str, key: str) -> Any:  # noqa: ANN401 - a class or a function
    """Returns the class or the function of a full name.

    Arguments:
        target: The name, as in "diffem.network.UNet".
        key: The key that names it, for messages.

    Raises:
        UserError: If it cannot be imported.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={target} cannot be imported: {error}") from error


def _build(node: Any, key: str, given: Mapping[str, Any]) -> Any:  # noqa: ANN401
    if isinstance(node, list):
        return [_build(value, f"{key}.{i}", {}) for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {
        str(name): _build(value, f"{key}.{name}", {})
        for name, value in node.items()
        if name not in (TARGET, PARTIAL)
    }
    if TARGET not in node:
        return built
    target = locate(node[TARGET], f"{key}.{TARGET}")
    arguments = {**built, **given}
    if node.get(PARTIAL, False):
        return partial(target, **arguments)
    try:
        return target(**arguments)
    except (UserError, FloatingPointError, MemoryError):
        raise
    except Exception as error:  # a class raises what it likes
        raise UserError(f"{key} cannot be built: {' '.join(str(error).split())}") from error
