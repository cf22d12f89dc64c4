"""Draws depend on a key alone, and seeding them leaves nothing behind."""

import pytest
import torch

from diffem.runtime.rng import derive_seed, seeded


def test_the_draws_of_a_scope_are_those_of_torch_seeded_by_the_key() -> None:
    torch.manual_seed(derive_seed(0, "e-step", 3))
    expected = torch.randn(5)
    torch.manual_seed(7)
    outside = torch.randn(5)
    torch.manual_seed(7)
    with seeded(0, "e-step", 3):
        assert torch.equal(torch.randn(5), expected)
    assert torch.equal(torch.randn(5), outside)


def test_seeding_formats_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 12, 5: torch.manual_seed does, for each sort of accelerator that is not in use."""
    monkeypatch.setattr("traceback.format_stack", lambda: pytest.fail("a stack trace"))
    with seeded("key"):
        torch.randn(1)
