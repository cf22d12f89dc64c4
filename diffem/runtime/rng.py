"""Derived seeds: every draw depends on a key such as (seed, "e-step", round, chunk) alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Key = int | str


def derive_seed(*key: Key) -> int:
    """Hashes a key to a seed in [0, 2^63), the same in every process and on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator on a device, seeded by a key."""
    return torch.Generator(device).manual_seed(derive_seed(*key))


@contextmanager
def seeded(*key: Key, device: torch.device | str = "cpu") -> Iterator[None]:
    """Opens a scope in which the global generators are seeded by a key, and restores them after.

    azula's samplers, dropout and torch.distributions draw from the global generators.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed_global_generators(derive_seed(*key), device)
        yield


def _seed_global_generators(seed: int, device: torch.device) -> None:
    """Seeds the global generators of the CPU and of a device, as torch.manual_seed does.

    For each sort of accelerator that is not in use torch.manual_seed formats a stack trace, which
    takes a third of a millisecond in an optimiser step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def default_float32() -> Iterator[None]:
    """Opens a scope in which new tensors are float32, whatever the process has chosen."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
