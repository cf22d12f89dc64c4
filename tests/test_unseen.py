"""bench/unseen.py: what is left out, the Gaussian's baseline, a run of seconds, and the table."""

import json
from pathlib import Path

import pytest
import torch
from command import SHORT, run_warm
from torch.distributions import MultivariateNormal

import bench.unseen as unseen
from diffem.corruption import Measurement
from diffem.data import Digits


def test_one_class_is_left_out_of_the_training_alone() -> None:
    labels = Digits(unseen.SHAPE, train=unseen.TRAIN).labels()
    (train, heldout, found), (other, same, _) = (unseen.measure_digits(d, 0) for d in (3, 4))
    assert len(train.y) == int((labels.train != 3).sum())
    assert torch.equal(heldout.y, same.y) and len(other.y) != len(train.y)
    assert torch.equal(found.bool(), labels.heldout == 3)


def test_the_gaussian_is_scored_on_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one known Gaussian, by the law of all entries where all are measured."""
    train, heldout, _ = unseen.measure_digits(0, 0)
    full = Measurement(heldout.y[:3], torch.ones_like(heldout.operator[:3]), heldout.noise[:3])
    fitted = []

    def keep(*arguments: object, **more: object) -> object:
        """Fits once, to the same measurements, which takes seconds."""
        if not fitted:
            fitted.append(original(*arguments, **more))  # type: ignore[arg-type]
        return fitted[0]

    original = unseen.fit_gaussian
    monkeypatch.setattr(unseen, "fit_gaussian", keep)
    part = unseen.gaussian_surprise(train, heldout.select(slice(3)), 0)
    whole = unseen.gaussian_surprise(train, full, 0)
    (prior,) = fitted
    cov = torch.diag(prior.cov.D) + prior.cov.V @ prior.cov.V.mT + unseen.NOISE**2 * torch.eye(64)
    law = MultivariateNormal(prior.prior_mean, cov)
    expected = (-law.log_prob(full.y.flatten(1).double()) / 64).tolist()
    assert whole == pytest.approx(expected) and part != pytest.approx(expected)


def test_a_run_prints_its_line_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        done = run_warm(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(unseen, "run", run)
    tiny = [o for o in SHORT if not o.startswith(("dataset", "prior"))]
    command = ["run", "7", "--out", str(tmp_path), "--n", "1", "--settings"]
    unseen.main([*command, *tiny, "prior.steps=6", "dataset.limit=100", "em.guard=null"])
    first = capsys.readouterr().out
    found = json.loads(first)
    assert found["measurements"] == 297 and 0 < found["unseen"] < 60
    assert all(0 <= found[name] <= 1 for name in unseen.SCORES)
    unseen.main([*command, *tiny, "prior.steps=6", "dataset.limit=100", "em.guard=null"])
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit, match="is of other settings; choose another --out"):
        unseen.main([*command, "em.rounds=3"])
    with pytest.raises(SystemExit, match="missing: digit 0 of seed 0, digit 1 of seed 0"):
        unseen.main(["summary", str(tmp_path)])


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for digit in range(10):
        for seed in (0, 1):
            folder = tmp_path / f"digit_{digit}" / f"seed_{seed}"
            folder.mkdir(parents=True)
            scores = {"evidence": 0.9 - 0.02 * seed, "map": digit / 10, "gaussian": 0.5}
            line = {"digit": digit, "seed": seed, **scores}
            (folder / unseen.RESULT).write_text(json.dumps(line))
    unseen.main(["summary", str(tmp_path)])
    said = capsys.readouterr().out
    # The deviation of 0.9 and 0.88 is 0.02 / √2; the mean of 0, 0.1 … 0.9 is 0.45.
    assert "| mean | 0.890 ± 0.014 | 0.450 ± 0.000 | 0.500 ± 0.000 |" in said
    assert "| 9 | 0.890 ± 0.014 | 0.900 ± 0.000 | 0.500 ± 0.000 |" in said and "2 seeds" in said
    with pytest.raises(SystemExit, match="holds no results"):
        unseen.main(["summary", str(tmp_path / "empty")])
