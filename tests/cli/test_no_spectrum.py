"""Operators of no spectrum at hand: most methods train, and those that need one say so."""

import json
from pathlib import Path

import pytest
from in_process import run_here

from diffem.runtime.errors import UserError

CORRUPTIONS = {
    "multicoil": ["corruption=multicoil", "corruption.acceleration=2"],
    "radon": ["corruption=radon", "corruption.angles=3"],
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("method", ["diffem", "em_mmps", "em_dps"])
def test_methods_that_need_none_train(method: str, corruption: str, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", f"method={method}", *CORRUPTIONS[corruption])
    final = json.loads((run / "summary.json").read_text())["final"]
    assert final["psnr"] > 0
    if method == "diffem":  # y is fused: a network that has hardly learned is consistent with it
        assert final["residual_chi2"] < 2


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        *(
            (f"method={method}", r"needs the spectrum of the operator, and .* has none; choose")
            for method in ("em_pigdm", "em_pnp", "fast_em", "em_mmps_cov_t", "em_mmps_identity")
        ),
        ("method.objective.imputed=0", "method.objective.imputed=0 needs the spectrum of the op"),
    ],
)
def test_what_needs_one_is_refused(
    setting: str, sentence: str, corruption: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run_here(tmp_path / "run", *CORRUPTIONS[corruption], setting)
