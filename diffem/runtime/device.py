"""Devices: which one a trainer takes, and in which precision it computes fast."""

import torch


def device_of(accelerator: str) -> torch.device:
    """Returns the device that a trainer takes for an accelerator.

    Arguments:
        accelerator: `trainer.accelerator`: auto, cpu, gpu, cuda or mps.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def computes_bfloat16(device: torch.device) -> bool:
    """Returns whether a device has instructions for bfloat16.

    Where it has none, convolutions in bfloat16 are about ten times slower than in float32.

    Arguments:
        device: A GPU or the CPU; of others it is not known, and taken for no.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def computes_float16(device: torch.device) -> bool:
    """Returns whether a device computes in float16 faster than in float32: no CPU does here."""
    return device.type != "cpu"


def precision_of(precision: str, accelerator: str) -> str:
    """Returns a precision of Lightning's; of auto, what is fast on the device.

    Arguments:
        precision: `trainer.precision`.
        accelerator: `trainer.accelerator`.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if computes_bfloat16(device_of(accelerator)) else "32-true"
