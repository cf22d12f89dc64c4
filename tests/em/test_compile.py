"""compile=true: the same weights under the same names, and one sentence where it cannot be."""

from pathlib import Path

import pytest
import torch
from in_process import run_here
from small_run import SmallRun
from torch._inductor.exc import InductorError

from diffem.cli.parts import check_compiles, compile_errors
from diffem.runtime.errors import UserError


def test_a_network_that_cannot_be_compiled_is_one_sentence() -> None:
    error = InductorError(RuntimeError("no compiler\n\nmany lines"), None)
    wanted = "compile=true: .* no compiler.* start in a new run_dir with compile=false"
    with pytest.raises(UserError, match=wanted), compile_errors(True):
        raise error
    with pytest.raises(InductorError), compile_errors(False):
        raise error


def test_a_machine_without_a_compiler_is_refused_before_the_run_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After round 0 it was refused, and compile=false then as another configuration."""

    def failing(*_: object, **__: object) -> None:
        raise InductorError(RuntimeError("no compiler"), None)

    monkeypatch.setattr(torch, "compile", failing)
    check_compiles.cache_clear()
    with pytest.raises(UserError, match=r"compile=true: .* no compiler"):
        run_here(tmp_path / "run", "compile=true")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_a_compiled_run_is_an_eager_one_but_for_rounding(tmp_path: Path) -> None:
    """Eight steps of Adam, in float32."""
    eager, compiled = SmallRun(tmp_path / "a"), SmallRun(tmp_path / "b")
    compiled.module.compile_network()
    states = [run.fit().module.state_dict() for run in (eager, compiled)]
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=1e-2, atol=1e-3)
