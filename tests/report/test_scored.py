"""A round's scores are of its first reconstructions, which the scores count."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from diffem.corruption import GaussianNoise, LinearGaussianChannel, Mask, Measurement, make_channel
from diffem.data.measurements import MeasurementSet
from diffem.em import DenoiserModule, Round
from diffem.metric import PSNR, SSIM, Evaluation, Metric, ResidualChi2, psnr, ssim
from diffem.posterior import Posterior
from diffem.report import RunReport
from diffem.report.scorer import Scorer
from diffem.report.scoring import compute
from diffem.storage.reconstructions import ReconstructionStore

N = 20
METRICS: Mapping[str, Metric] = {"psnr": PSNR(), "ssim": SSIM(), "chi2": ResidualChi2()}


@pytest.mark.parametrize(("limit", "scored"), [(4096, N), (11, 11), (8, 8), (3, 3)])
def test_the_first_reconstructions_are_scored(
    limit: int, scored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffem.report.scorer.SCORED", limit)
    draw = torch.Generator().manual_seed(0)
    truth, x = torch.rand(2, N, 1, 8, 8, generator=draw) * 2 - 1
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    assert isinstance(channel, LinearGaussianChannel)
    measurement = channel.draw(truth, draw)
    measurements = MeasurementSet(measurement, channel, truth)
    store = ReconstructionStore(tmp_path / "r", size=N, chunk_size=8)
    for chunk in store.chunks:
        store.write(0, chunk, x[store.rows(chunk)])
    store.commit(0, "w")
    evaluation = Evaluation(samples=2, subset=2, heldout=2, prior=2, metrics=METRICS)
    scorer = Scorer(evaluation, store, 0, torch.device("cpu"))
    means, counts = scorer.score_round(0, measurements, truth)
    first = slice(scored)
    chi2 = channel.residual_chi2(measurement.select(first), x[first])
    expected = {
        "psnr": psnr(x, truth)[first],
        "ssim": ssim(x, truth)[first],
        "residual_chi2": chi2,
    }
    for name, values in expected.items():
        assert means[name] == pytest.approx(float(values.double().mean()), rel=1e-6)
    assert counts == {"scored": scored}


def test_scores_are_of_exact_float32_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a CPU can tell: the setting of a GPU is changed for the scope alone."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, seen = convolutions.fp32_precision, list[str]()

    class Probe(PSNR):
        def compute(self, x: torch.Tensor, *_: object) -> torch.Tensor:  # type: ignore[override]
            seen.append(convolutions.fp32_precision)
            return (x.flatten(1) @ x.flatten(1).T).diagonal()

    x = torch.rand(4, 1, 8, 8)
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    measurements = MeasurementSet(channel.draw(x, torch.Generator()), channel, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = compute(Probe(), x, measurements, slice(4), "cpu")
    assert seen == ["ieee"] and convolutions.fp32_precision == before
    assert values.dtype == torch.float32


class Constant(Posterior):
    """The point mass at an image of one value."""

    def draw(self, measurement: Measurement) -> torch.Tensor:
        return torch.full((len(measurement.y), 1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("redrawn", "draws", "values"),
    [(1.0, 1, {0.0, 0.5}), (0.5, 1, {0.5}), (0.0, 1, {0.5}), (1.0, 2, {0.5})],
)
def test_samples_of_a_round_are_of_one_posterior(
    redrawn: float,
    draws: int,
    values: set[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reconstructions that the guard kept are of another one, or of several draws."""
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    draw = torch.Generator().manual_seed(0)
    measurements = MeasurementSet(channel.draw(torch.zeros(N, 1, 8, 8), draw), channel)
    store = ReconstructionStore(tmp_path / "reconstructions", size=N, chunk_size=N)
    store.write(0, 0, torch.zeros(N, 1, 8, 8))
    store.commit(0, "w")
    evaluation = Evaluation(samples=3, subset=4, heldout=2, prior=2)
    report = RunReport(tmp_path, {"seed": 0}, evaluation, measurements, measurements, store=store)
    seen: list[torch.Tensor] = []

    def score(_: Scorer, samples: torch.Tensor, *__: object) -> dict[str, float]:
        seen.append(samples)
        return {}

    monkeypatch.setattr(Scorer, "score_means", score)
    module = SimpleNamespace(
        device=torch.device("cpu"), trainer=SimpleNamespace(loggers=[], global_step=0)
    )
    costs: dict[str, float | None] = {
        "redrawn": redrawn,
        "draws": draws,
        "e_step_seconds": 0.0,
        "m_step_seconds": 0.0,
    }
    report.on_round(cast(DenoiserModule, module), Round(0, Constant(), measurements, costs, []))
    (samples,) = seen
    assert samples.shape == (3, 4, 1, 8, 8) and set(samples.unique().tolist()) == values


def test_no_figure_of_the_result_has_the_error_of_another(tmp_path: Path) -> None:
    """The energy distance is a mean over samples, and had the standard error of one of them."""
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    draw = torch.Generator().manual_seed(0)
    heldout = MeasurementSet(channel.draw(torch.zeros(N, 1, 8, 8), draw), channel)
    store = ReconstructionStore(tmp_path / "reconstructions", size=N, chunk_size=N)
    metrics: Mapping[str, Metric] = {"chi2": ResidualChi2()}
    scorer = Scorer(Evaluation(2, 2, 2, 2, metrics), store, 0, torch.device("cpu"))
    final = scorer.score_heldout(torch.randn(2, N, 1, 8, 8, generator=draw), heldout)
    assert "measurement_energy_distance" in final and "residual_ks_error" in final
    assert "measurement_energy_distance_error" not in final
    assert final["residual_chi2_error"] > 0


def test_a_collapse_warns_once_and_is_kept_in_each_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    y = channel.draw(torch.zeros(N, 1, 8, 8), torch.Generator().manual_seed(0))
    measurements = MeasurementSet(y, channel)
    store = ReconstructionStore(tmp_path / "reconstructions", size=N, chunk_size=N)
    evaluation = Evaluation(samples=2, subset=2, heldout=2, prior=2)
    report = RunReport(tmp_path, {"seed": 0}, evaluation, measurements, measurements, store=store)
    for k, diversity in enumerate((1.0, 0.95, 0.8, 0.7)):
        row = {"round": k, "diversity": diversity}
        report.journal.rounds.append(row | report._collapse(row))
    assert [row.get("collapse") for row in report.journal.rounds] == [
        *(None, None),
        *({"diversity": 0.8}, {"diversity": 0.7}),
    ]
    for k, draws, redrawn in ((4, 2, 1.0), (5, 1, 0.5)):  # of several draws, and in part
        row = {"round": k, "diversity": 0.7, "draws": draws, "redrawn": redrawn}
        assert not report._collapse(row)
        report.journal.rounds.append(row)
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("EM may be collapsing: the diversity of round 2 is 0.80 of round 0's") == 1


def test_a_round_has_figures_without_ground_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    draw = torch.Generator().manual_seed(0)
    measurements = MeasurementSet(channel.draw(torch.zeros(N, 1, 8, 8), draw), channel)
    store = ReconstructionStore(tmp_path / "reconstructions", size=N, chunk_size=N)
    for k in range(2):
        store.write(k, 0, torch.full((N, 1, 8, 8), 0.5 * k))
        store.commit(k, "w")
    evaluation = Evaluation(samples=2, subset=4, heldout=2, prior=2, metrics={"c": ResidualChi2()})
    report = RunReport(tmp_path, {"seed": 0}, evaluation, measurements, measurements, store=store)
    module = SimpleNamespace(
        device=torch.device("cpu"), trainer=SimpleNamespace(loggers=[], global_step=0)
    )
    costs: dict[str, float | None] = {"e_step_seconds": 0.0, "m_step_seconds": 0.0}
    for k in range(2):
        round = Round(k, Constant(), measurements, {**costs, "hidden_mse": 1.0 - k}, [])
        parts = report.on_round(cast(DenoiserModule, module), round)
        assert len(parts["measurement_energy_distance"]) == 4
    first, row = report.journal.rounds
    assert "change" not in first and row["change"] == 0.5
    assert {"residual_ks", "residual_ks_error", "residual_pixel", "measurement_p"} <= row.keys()
    assert row["residual_ks"] > 0.3  # y is near 0 and x̂ is 0.5
    chi2 = channel.residual_chi2(measurements.select(slice(N)), torch.full((N, 1, 8, 8), 0.5))
    assert row["residual_chi2_error"] == pytest.approx(float(chi2.std()) / N**0.5, rel=1e-5)
    assert report.best_round == 1
    # Rounds of an earlier version have the energy score alone.
    report.journal.rounds = [
        {"round": 1, "hidden_entries": 0.1},
        {"round": 2, "hidden_entries": 0.2, "hidden_mse": 0.5},
    ]
    assert (report.best_round, report.compared_by) == (1, "hidden_entries")
