"""The verdict on a run: what it says of each case, and that it says nothing that is not known."""

import re
from typing import Any

import pytest
import torch

from diffem.report.verdict import (
    Judgement,
    Statement,
    expected_gap,
    next_steps,
    relaxed_line,
    spread_over_error,
    verdict,
)
from diffem.storage.rows import is_relaxed

GOOD, ATTENTION, UNKNOWN = Judgement


def rounds(hidden: list[float | None], redrawn: list[float] | None = None) -> list[dict[str, Any]]:
    return [
        {"round": k, "hidden_entries": score, "residual_chi2": 1.0, "diversity": 0.5, "redrawn": r}
        for k, (score, r) in enumerate(zip(hidden, redrawn or [1.0] * len(hidden), strict=True))
    ]


FINAL = {
    "residual_chi2": 0.98,
    "psnr": 18.0,
    "psnr_mean": 20.5,
    "init_psnr_mean": 19.8,
    "diversity": 0.5,
    "diversity_truth": 0.55,
    "prior": {"nearest": 0.5, "nearest_heldout": 0.48},
}
WELL: dict[str, Any] = {
    "rounds": rounds([0.6, 0.55, 0.549]),
    "final": FINAL,
    "samples": 8,
    "unmeasured": [],
}


def said(summary: dict[str, Any], topic: str) -> Statement:
    (found,) = (s for s in verdict(summary) if s.topic == topic)
    return found


def final(**changed: Any) -> dict[str, Any]:
    return {**WELL, "final": {**FINAL, **changed}}


def test_a_run_that_went_well() -> None:
    statements = verdict(WELL)
    judged = {s.topic: s.judgement for s in statements}
    assert judged.pop("Channel") is UNKNOWN  # which no figure can tell
    assert set(judged.values()) == {GOOD} and len(judged) == 5
    assert next_steps(statements) == []
    improvement = said(WELL, "Improvement").text
    assert "0.549 against 0.6 in round 0; lower is better" in improvement
    assert "20.50 dB, the posterior mean of the init 19.80 dB" in improvement


@pytest.mark.parametrize("summary", [{}, {"rounds": []}, {"rounds": None, "final": None}])
def test_without_a_round_nothing_is_said(summary: dict[str, Any]) -> None:
    (only,) = verdict(summary)
    assert only.judgement is UNKNOWN and "No round" in only.text


def test_without_figures_nothing_is_known() -> None:
    bare = {"rounds": [{"round": k} for k in range(3)]}
    statements = verdict(bare)
    assert {s.judgement for s in statements} == {UNKNOWN}
    (advice,) = next_steps(statements)
    assert advice.startswith("Once the run is finished, `diffem calibrate RUN`")
    assert not any(re.search("[0-9]", s.text.replace("near 1", "")) for s in statements)
    not_finite = {"rounds": [{"round": k, "residual_chi2": None} for k in range(2)]}
    assert said(not_finite, "Fit").judgement is UNKNOWN


def test_after_the_init_there_is_no_improvement_yet() -> None:
    assert said({"rounds": rounds([0.6])}, "Improvement").judgement is UNKNOWN


@pytest.mark.parametrize(
    ("hidden", "redrawn", "judgement", "text"),
    [
        ([0.6, 0.5], None, GOOD, "better than by the init (0.5 against 0.6"),
        ([0.6, 0.6], None, ATTENTION, "no better than by the init"),
        ([0.6, 0.7], None, ATTENTION, "no better than by the init"),
        ([0.6, 0.7, 0.65], [1.0, 0.0, 0.0], ATTENTION, "of round 0 were kept to the end"),
        ([0.6, 0.7, 0.5, 0.52], [1.0, 0.0, 1.0, 0.0], ATTENTION, "round 2 were kept to the end"),
    ],
)
def test_improvement_over_the_init(
    hidden: list[float], redrawn: list[float] | None, judgement: Judgement, text: str
) -> None:
    statement = said({"rounds": rounds([*hidden], redrawn)}, "Improvement")
    assert statement.judgement is judgement and text in statement.text


def test_a_score_that_still_falls_asks_for_more_rounds() -> None:
    falling = said({"rounds": rounds([0.6, 0.55, 0.5])}, "Improvement")
    assert "still fell in the last round (0.55 to 0.5)" in falling.advice
    assert "em.rounds=4" in falling.advice
    assert said({"rounds": rounds([0.6, 0.5, 0.4999])}, "Improvement").advice == ""


def test_clean_images_may_contradict_the_score() -> None:
    worse = said(final(psnr_mean=19.0, psnr=16.6), "Improvement")
    assert worse.judgement is ATTENTION and "19.00 dB" in worse.text


def test_without_hidden_entries_the_clean_images_tell() -> None:
    rows = [{"round": k, "psnr_mean": 15.0 + k} for k in range(3)]
    statement = said({"rounds": rows}, "Improvement")
    assert statement.judgement is GOOD and "from 15.00 to 17.00 dB" in statement.text
    assert said({"rounds": rows[::-1]}, "Improvement").judgement is ATTENTION


@pytest.mark.parametrize(
    ("chi2", "judgement", "text"),
    [
        (1.0, GOOD, "as they should"),
        (0.92, GOOD, "as they should"),
        (0.5, ATTENTION, "fit the noise"),
        (1.5, ATTENTION, "miss what was measured"),
        (None, UNKNOWN, "There is no χ²"),
    ],
)
def test_fit(chi2: float | None, judgement: Judgement, text: str) -> None:
    statement = said(final(residual_chi2=chi2), "Fit")
    assert statement.judgement is judgement and text in statement.text
    assert bool(statement.advice) == (judgement is ATTENTION)
    assert ("by heart" in statement.advice) is (chi2 == 1.5)


@pytest.mark.parametrize(
    ("chi2", "error", "judgement"),
    [
        (0.7, 0.1, ATTENTION),
        (0.7, 0.2, UNKNOWN),
        (1.5, 0.3, UNKNOWN),
        (1.5, 0.2, ATTENTION),
        (1.5, None, UNKNOWN),  # of one measurement
        (0.9, 0.4, GOOD),
    ],
)
def test_a_fit_that_may_be_chance(chi2: float, error: float, judgement: Judgement) -> None:
    statement = said(final(residual_chi2=chi2, residual_chi2_error=error), "Fit")
    assert statement.judgement is judgement
    assert ("may be chance" in statement.text) is (judgement is UNKNOWN)
    assert ("dataset.heldout" in statement.advice) is (judgement is UNKNOWN)


def test_of_an_over_relaxed_round_nothing_is_said_of_samples() -> None:
    """A run that had come so far was told that its noise was wrong."""
    rows = [{"round": k, "draws": k + 1, "residual_chi2": 0.5} for k in range(2)]
    statement = said({"rounds": rows}, "Fit")
    assert statement.judgement is UNKNOWN and not statement.advice
    assert "of round 1 were drawn" in statement.text
    assert said({"rounds": rows[:1]}, "Fit").judgement is ATTENTION
    assert said({"rounds": rows, "final": {"residual_chi2": 1.0}}, "Fit").judgement is GOOD
    kept = [*rows, {"round": 2, "draws": 1, "redrawn": 0.5, "residual_chi2": 0.5}]
    assert said({"rounds": kept}, "Fit").judgement is UNKNOWN
    line = relaxed_line([*kept, {"round": 3, "draws": 1, "redrawn": 1.0}])
    assert line is not None and "round 1, 2 (in chunks that it kept);" in line


@pytest.mark.parametrize(("redrawn", "mixed"), [(0.5, 4), (0.96, 0), (1.0, 0)])
def test_a_round_that_keeps_over_relaxed_reconstructions_is_over_relaxed(
    redrawn: float, mixed: int
) -> None:
    """With em.refresh=0.5 a half of the last round is, then a quarter, an eighth, a sixteenth.

    Of 0.96 it is 1/25, which is passed over.
    """
    of_two, of_one = {"draws": 2, "redrawn": 1.0}, {"draws": 1, "redrawn": redrawn}
    rows = [{"round": k, **row} for k, row in enumerate([of_two, *[of_one] * 8])]
    found = [is_relaxed(rows[: k + 1]) for k in range(9)]
    assert found == [True] * (1 + mixed) + [False] * (8 - mixed)
    kept = [f"{k} (in chunks that it kept)" for k in range(1, 1 + mixed)]
    numbers = ", ".join(["0", *kept])
    assert (relaxed_line(rows) or "").startswith(f"over-relaxed (em.relax): round {numbers};")
    rows = [{**row, "diversity": 1.0 if k == 0 else 0.4} for k, row in enumerate(rows[:2])]
    assert any(s.topic == "Diversity" for s in verdict({"rounds": rows})) is (mixed == 0)


@pytest.mark.parametrize(
    ("gap", "judgement", "text"),
    [
        (2.5, GOOD, "about as much as they err, 1.00 times"),
        (1.0, ATTENTION, "too little"),
        (4.5, ATTENTION, "too much"),
        (0.0, ATTENTION, "too little, about 0.00 times"),
        (20.0, UNKNOWN, "not known"),
    ],
)
def test_calibration(gap: float, judgement: Judgement, text: str) -> None:
    statement = said(final(psnr=18.0, psnr_mean=18.0 + gap), "Calibration")
    assert statement.judgement is judgement and text in statement.text
    # Both were told to train longer, and to take a sampler that leaves noise in the samples.
    assert ("sampler=sde" in statement.advice) is ("too little" in text)
    assert ("Train longer" in statement.advice) is (text == "too much")


def test_without_a_prior_no_calibration_is_advised() -> None:
    (statement,) = (
        s
        for s in verdict(final(psnr=None, psnr_mean=None, prior=None))
        if s.topic == "Calibration"
    )
    assert statement.judgement is UNKNOWN and not statement.advice
    assert "takes a prior, and the run has trained none" in statement.text


def test_without_clean_images_calibration_is_not_known() -> None:
    for summary in ({**WELL, "samples": None}, final(psnr=None), {"rounds": WELL["rounds"]}):
        assert said(summary, "Calibration").judgement is UNKNOWN


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.0])
def test_spread_over_error_of_known_samples(ratio: float) -> None:
    """A mean with errors of variance 1, and samples that spread around it by a known factor.

    A mean square of 400,000 normal values is known to 0.22 % (√(2 / 400,000)), and so to 0.01 dB.
    The spread is most sensitive where it is small: d ratio / d gap < 0.5 for these.
    """
    draw = torch.Generator().manual_seed(0)
    n, size = 8, 400_000
    error = torch.randn(size, generator=draw)
    samples = error + ratio * torch.randn(n, size, generator=draw)
    one, mean = samples[0].square().mean(), samples.mean(0).square().mean()
    gap = float(10 * torch.log10(one / mean))
    assert spread_over_error(gap, n) == pytest.approx(ratio, abs=0.02)
    if ratio == 1.0:
        assert expected_gap(n) == pytest.approx(gap, abs=0.04)


@pytest.mark.parametrize(
    ("summary", "word"),
    [
        (final(diversity=0.2), "less"),
        (final(diversity=1.4), "more"),
        ({"rounds": [{"round": k, "diversity": 0.5 / (1 + 2 * k)} for k in range(3)]}, "alike"),
    ],
)
def test_diversity_is_said_where_it_is_wrong(summary: dict[str, Any], word: str) -> None:
    statement = said(summary, "Diversity")
    assert statement.judgement is ATTENTION and word in statement.text and statement.advice


def test_a_collapse_that_the_run_found() -> None:
    rows = [{"round": 0}, {"round": 1, "collapse": {"effective_rank": 0.3}}]
    statement = said({"rounds": rows}, "Diversity")
    assert statement.judgement is ATTENTION and "effective_rank 0.30" in statement.text
    assert "or round 0 was" not in statement.text and "Take an earlier round" in statement.advice


@pytest.mark.parametrize(("hidden", "better"), [([0.6, 0.5], True), ([0.6, 0.7], False)])
def test_a_round_0_that_was_too_diverse_is_no_collapse(hidden: list[float], better: bool) -> None:
    """As the init of strong noise is on Fashion-MNIST: 0.73, true images 0.61."""
    rows = rounds([*hidden])
    rows[-1]["collapse"] = {"diversity": 0.88}
    statement = said({"rounds": rows}, "Diversity")
    assert statement.judgement is ATTENTION
    assert ("or round 0 was more diverse than true images" in statement.text) is better
    assert ("before you change anything" in statement.advice) is better


def test_a_better_round_is_named() -> None:
    named = {"figure": "hidden_entries", "round": 1}
    worse = {**WELL, "rounds": rounds([0.6, 0.5, 0.549]), "best": named}
    best = said(worse, "Best round")
    assert (
        "hidden_entries (0.5 against 0.549; lower is better); the result is that of" in best.text
    )
    last = {**WELL, "best": named | {"round": 2}}
    close = {**WELL, "rounds": rounds([0.6, 0.548, 0.549]), "best": named}
    for each in (last, close):
        assert not [s for s in verdict(each) if s.topic == "Best round"]


@pytest.mark.parametrize(
    ("p", "test", "factor", "judgement"),
    [
        (0.3, {"p": 0.4}, (1.01, 0.01), GOOD),
        (0.3, None, (1.01, 0.01), GOOD),
        (0.001, {"p": 0.4}, (1.01, 0.01), ATTENTION),
        (0.3, {"p": 0.001}, (1.01, 0.01), ATTENTION),
        (0.3, None, (1.5, 0.01), ATTENTION),
    ],
)
def test_a_calibration_comes_before_what_clean_images_say(
    p: float, test: dict[str, float] | None, factor: tuple[float, float], judgement: Judgement
) -> None:
    simulated = {"p": {"all": p}, "factor": dict(zip(("value", "error"), factor, strict=True))}
    found = {"simulated": simulated, "measurement_test": test, "verdict": ["One.", "Two."]}
    found["round"] = last = WELL["rounds"][-1]["round"]
    (statement,) = (s for s in verdict(WELL, found) if s.topic == "Calibration")
    assert statement == Statement("Calibration", judgement, "One. Two.")
    found["round"] = last - 1  # of the result that the run had before it was given another round
    (statement,) = (s for s in verdict(WELL, found) if s.topic == "Calibration")
    assert statement.judgement is UNKNOWN and "diffem calibrate RUN" in statement.advice
    assert f"is of the result of round {last - 1}, and says nothing of that of round {last}" in (
        statement.text
    )
    for damaged in ({}, {"verdict": 1}, {"verdict": [], "simulated": 3}):
        (other,) = (s for s in verdict(WELL, damaged) if s.topic == "Calibration")
        assert "2.50 dB better than one sample" in other.text


def test_a_prior_that_copies() -> None:
    copies = final(prior={"nearest": 0.1, "nearest_heldout": 0.5})
    assert said(copies, "Memorisation").judgement is ATTENTION
    assert not [s for s in verdict(final(prior=None)) if s.topic == "Memorisation"]


def test_what_is_not_measured() -> None:
    blind = {**WELL, "unmeasured": ["pixel (0, 0) is never measured: a guess"]}
    statement = said(blind, "What was measured")
    assert statement.judgement is ATTENTION
    assert statement.text == "Pixel (0, 0) is never measured: a guess."
    assert said({**WELL, "unmeasured": None}, "What was measured").judgement is UNKNOWN


def test_the_channel_is_never_proved() -> None:
    learned = {**WELL, "rounds": [*WELL["rounds"][:2], {"round": 2, "estimate": {"std": 0.051}}]}
    assert "std 0.051" in said(learned, "Channel").text
    assert "learned from clean images" in said({**WELL, "clean_images": True}, "Channel").text
    for summary in (WELL, learned):
        assert said(summary, "Channel").judgement is UNKNOWN


def test_an_absurd_gap_is_beyond_that_of_pure_spread() -> None:
    assert spread_over_error(1e308, 8) is None
    assert spread_over_error(-1e308, 8) == 0
