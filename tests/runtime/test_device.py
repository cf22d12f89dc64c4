"""trainer.precision=auto is what the device computes fast."""

import pytest
import torch

from diffem.result.sampling import Sampling
from diffem.runtime.device import computes_bfloat16, precision_of

CPU = torch.device("cpu")


def has(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    """Gives the processor these capabilities alone."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_processor_with_bfloat16(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    has(monkeypatch, avx2=True, **{name: True})
    assert precision_of("auto", "cpu") == "bf16-mixed"
    assert precision_of("32-true", "cpu") == "32-true"


def test_one_without_it_samples_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those who were trained in bfloat16, on another machine."""
    has(monkeypatch, avx2=True, avx512_bf16=False)
    assert precision_of("auto", "cpu") == "32-true"
    with Sampling(CPU, "bf16-mixed", 1, 0).context():
        assert not torch.is_autocast_enabled("cpu")
    has(monkeypatch, avx512_bf16=True)
    with Sampling(CPU, "bf16-mixed", 1, 0).context():
        assert torch.is_autocast_enabled("cpu")


def test_no_processor_samples_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a GPU, whose samples took four times as long on one."""
    has(monkeypatch, avx512_bf16=True)
    with Sampling(CPU, "16-mixed", 1, 0).context():
        assert not torch.is_autocast_enabled("cpu")


def test_a_device_that_is_not_there_is_asked_nothing() -> None:
    assert not computes_bfloat16(torch.device("meta"))
    if not torch.cuda.is_available():
        assert not computes_bfloat16(torch.device("cuda"))
