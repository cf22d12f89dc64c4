"""The verdict on a run in words, from the figures of its summary and nothing else.

Each statement says what a figure shows, and where there is none, that it is not known: what no
measurement shows, and whether the stated channel is the true one, no figure of a run tells.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from diffem.metric import Score, read_scores
from diffem.storage.rows import Row, draws, is_relaxed, redrawn, relaxed_rounds

FIT = (0.85, 1.15)  # χ² in this range fits (docs/results.md: right channels 0.94 and 0.98)
SPREAD = (0.8, 1.25)  # the std over the error; it is known from mean dB, which is not exact
SMALL = 0.01  # of p-values: below it something is wrong
SETTLED = 0.01  # the relative change of a score from which on it still falls
DIVERSE = (0.7, 1.4)  # the diversity over that of true images
COLLAPSED = 0.5  # of the diversity of round 0
COPIED = 0.5  # of the distance of held-out reconstructions to the nearest training one


class Judgement(StrEnum):
    """What a statement amounts to."""

    GOOD = "good"
    ATTENTION = "attention"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Statement:
    """One thing that is said of a run."""

    topic: str
    judgement: Judgement
    text: str
    """One or two sentences, with the figures."""
    advice: str = ""
    """What to try next, a sentence; empty for nothing."""


def verdict(
    summary: Mapping[str, Any], calibration: Mapping[str, Any] | None = None
) -> list[Statement]:
    """Returns what can be said of a run.

    Arguments:
        summary: The content of `summary.json`, or of `rounds.json` while the run has none; what
            is missing in it is not spoken of, or said to be not known.
        calibration: The content of the newest `calibration_001.json`, if there is one.
    """
    rounds: Sequence[Row] = summary.get("rounds") or []
    final: Row = summary.get("final") or {}
    if not rounds:
        text = "No round has been finished, so that nothing can be said yet."
        return [Statement("Result", Judgement.UNKNOWN, text)]
    scores = {score.name: score for score in read_scores([summary])}
    return [
        _improvement(rounds, final, scores),
        _fit(rounds, final),
        *_best_round(summary.get("best") or {}, rounds, scores),
        _calibrated(calibration or {}, rounds, final)
        or _calibration(final, summary.get("samples")),
        *_diversity(rounds, final),
        *_memorisation(final.get("prior") or {}),
        _unmeasured(summary.get("unmeasured")),
        _channel(rounds[-1], clean=bool(summary.get("clean_images"))),
    ]


def next_steps(statements: Sequence[Statement]) -> list[str]:
    """Returns the advice of statements, each once."""
    return list(dict.fromkeys(s.advice for s in statements if s.advice))


def _improvement(rounds: Sequence[Row], final: Row, scores: Mapping[str, Score]) -> Statement:
    """Returns whether the rounds improve on the init."""
    topic = "Improvement"
    if len(rounds) == 1:
        return Statement(topic, Judgement.UNKNOWN, "Only the init has been scored so far.")
    truth, judged = _against_the_init(final)
    drawn = [row for row in rounds if redrawn(row)]
    hidden = [(r["round"], r["hidden_entries"]) for r in drawn if _has(r, "hidden_entries")]
    if hidden and hidden[0][0] == 0:
        if (kept := kept_line(rounds)) is not None:
            text = f"{kept[0].upper()}{kept[1:]}.{truth}"
            return Statement(topic, Judgement.ATTENTION, text)
        first, last = hidden[0][1], hidden[-1][1]
        what = "Hidden parts of held-out measurements"
        figures = f"{last:.4g} against {first:.4g} in round 0; lower is better"
        if last >= first:
            text = f"{what} are predicted no better than by the init ({figures}).{truth}"
            return Statement(topic, Judgement.ATTENTION, text, LONGER)
        text = f"{what} are predicted better than by the init ({figures}).{truth}"
        if judged is Judgement.ATTENTION:
            return Statement(topic, judged, text, LONGER)
        return Statement(topic, Judgement.GOOD, text, _falling(hidden))
    name = "psnr_mean" if "psnr_mean" in scores or _has(rounds[-1], "psnr_mean") else "psnr"
    known = [row[name] for row in rounds if _has(row, name)]
    if len(known) > 1:
        first, last, best = known[0], known[-1], max(known)
        figures = f"from {first:.2f} to {last:.2f} dB over the rounds, at best {best:.2f} dB"
        text = f"Against the clean images the PSNR went {figures}.{truth}"
        good = last > first and judged is not Judgement.ATTENTION
        judgement = Judgement.GOOD if good else Judgement.ATTENTION
        return Statement(topic, judgement, text, "" if good else LONGER)
    text = (
        "No figure of this run says whether the rounds improve on the init: no part of its "
        "measurements was hidden to be predicted, and there are no clean images. Compare the "
        "reconstructions over the rounds below."
    )
    return Statement(topic, Judgement.UNKNOWN, text)


LONGER = (
    "Train longer: more rounds (em.rounds) or more steps in each (em.steps_per_round); if the "
    "loss does not fall, with a lower m_step.optimizer.lr."
)


def _against_the_init(final: Row) -> tuple[str, Judgement]:
    """Returns what the clean images say of the result, where they are known, and its judgement."""
    if not (_has(final, "psnr_mean") and _has(final, "init_psnr_mean")):
        return "", Judgement.UNKNOWN
    mean, floor = final["psnr_mean"], final["init_psnr_mean"]
    text = (
        f" Against the clean images of held-out measurements the mean of samples has {mean:.2f} "
        f"dB, the posterior mean of the init {floor:.2f} dB."
    )
    return text, Judgement.GOOD if mean > floor else Judgement.ATTENTION


def kept_line(rounds: Sequence[Row]) -> str | None:
    """Returns what the guard of E-steps found at the end, if it kept reconstructions there.

    Arguments:
        rounds: The rows of the rounds.
    """
    drawn = [row for row in rounds if redrawn(row)]
    if not drawn or drawn[-1] is rounds[-1]:
        return None
    if not (_has(drawn[-1], "hidden_entries") and _has(rounds[-1], "hidden_entries")):
        return None
    return (
        f"the reconstructions of round {drawn[-1]['round']} were kept to the end: the network "
        "predicts hidden entries of held-out measurements worse than what drew them "
        f"({rounds[-1]['hidden_entries']:.4g} against {drawn[-1]['hidden_entries']:.4g}); train "
        "longer, by em.rounds or em.steps_per_round, or, if this score does not fall from "
        "round to round, with a lower m_step.optimizer.lr"
    )


def relaxed_line(rounds: Sequence[Row]) -> str | None:
    """Returns which rounds are over-relaxed, if any are, and what of them does not compare.

    Arguments:
        rounds: The rows of the rounds.
    """
    found = [
        f"{row['round']}" + ("" if draws(row) > 1 else " (in chunks that it kept)")
        for row, relaxed in zip(rounds, relaxed_rounds(rounds), strict=True)
        if relaxed
    ]
    return f"over-relaxed (em.relax): round {', '.join(found)}; {RELAXED}" if found else None


RELAXED = (
    "reconstructions there spread less than samples, and their scores, such as PSNR, χ² and "
    "diversity, do not compare with those of other rounds"
)


def _falling(hidden: Sequence[tuple[int, float]]) -> str:
    """Returns the advice to go on where the score still fell in the last round."""
    (_, before), (k, last) = hidden[-2:] if len(hidden) > 1 else (hidden[0], hidden[0])
    if last >= before * (1 - SETTLED):
        return ""
    return (
        f"The score still fell in the last round ({before:.4g} to {last:.4g}): more rounds may "
        f"help; a finished run goes on with `diffem train resume=RUN em.rounds={2 * k}`."
    )


HOLD_OUT = "Hold more measurements out, by a larger dataset.heldout in a new run_dir."
BY_HEART = "shorter, if hidden_entries rose: the network then knows its reconstructions by heart"


def _fit(rounds: Sequence[Row], final: Row) -> Statement:
    """Returns whether the reconstructions fit the data."""
    topic, row = "Fit", final or rounds[-1]
    where = "held-out" if final else "training"
    if not _has(row, "residual_chi2"):
        text = (
            "There is no χ² of this run (its channel is not linear, or nothing was measured), so "
            "that it is not known whether the reconstructions fit their measurements as they "
            "should."
        )
        return Statement(topic, Judgement.UNKNOWN, text)
    if not final and is_relaxed(rounds):
        text = (
            "Samples of held-out measurements spread too much (their χ² was below 1) when "
            f"reconstructions of round {row['round']} were drawn, so that they are over-relaxed: "
            "their χ² says nothing of samples. Look again after the last round."
        )
        return Statement(topic, Judgement.UNKNOWN, text)
    value, error = row["residual_chi2"], 0.0
    if "residual_chi2_error" in row:  # of one measurement it is none
        known = _has(row, "residual_chi2_error")
        error = float(row["residual_chi2_error"]) if known else math.inf
    shown = f" ± {error:.3f}" if 0 < error < math.inf else ""
    found = f"The residual χ² of {where} measurements is {value:.3f}{shown}, where 1 is expected"
    if not FIT[0] <= value <= FIT[1] and abs(value - 1) <= 2 * error:
        text = f"{found}: that may be chance, of so few measured entries."
        return Statement(topic, Judgement.UNKNOWN, text, HOLD_OUT)
    if value < FIT[0]:
        text = f"{found}: the reconstructions fit the noise."
        advice = (
            "χ² is below 1: train longer, with more rounds or steps; or the stated noise is "
            "larger than the true one."
        )
        return Statement(topic, Judgement.ATTENTION, text, advice)
    if value > FIT[1]:
        text = f"{found}: samples miss what was measured."
        advice = (
            "χ² is above 1: train longer, with a larger network or more sampler.steps; or "
            f"{BY_HEART}; or the stated noise is smaller than the true one, or the operator is "
            "another."
        )
        return Statement(topic, Judgement.ATTENTION, text, advice)
    return Statement(topic, Judgement.GOOD, f"{found}: they fit the measurements as they should.")


def _best_round(
    best: Row, rounds: Sequence[Row], scores: Mapping[str, Score]
) -> Iterator[Statement]:
    """Yields that an earlier round was better, if one was by more than a hundredth."""
    k, name, last = best.get("round"), str(best.get("figure")), rounds[-1]
    if not isinstance(k, int) or k == last["round"]:
        return
    label, figures = scores[name].label if name in scores else name, ""
    row = next((row for row in rounds if row["round"] == k), last)
    if _has(row, name) and _has(last, name):
        lowest, end = row[name], last[name]
        if end - lowest <= SETTLED * abs(lowest):
            return
        figures = f" ({lowest:.4g} against {end:.4g}; lower is better)"
    text = f"Round {k} has the best {label}{figures}; the result is that of round {last['round']}."
    advice = (
        f"The weights of round {k} are in checkpoints/best.safetensors, and sample as a run does: "
        "`diffem sample RUN/checkpoints/best.safetensors --input …`."
    )
    yield Statement("Best round", Judgement.ATTENTION, text, advice)


CALIBRATE = (
    "`diffem calibrate RUN` compares the spread of samples with their error, on images of the "
    "run's own prior."
)
LATER = f"Once the run is finished, {CALIBRATE}"


def is_current(calibration: Row, rounds: Sequence[Row]) -> bool:
    """Returns whether a calibration is of the last of a run's rounds.

    A finished run that was given more rounds has another result than the one it was made of.
    """
    return bool(rounds) and calibration.get("round") == rounds[-1]["round"]


def _calibrated(calibration: Row, rounds: Sequence[Row], final: Row) -> Statement | None:
    """Returns what a calibration found; None if there is none."""
    topic = "Calibration"
    says, simulated = calibration.get("verdict"), calibration.get("simulated")
    if not (isinstance(says, list) and isinstance(simulated, Mapping)):
        return None
    if not is_current(calibration, rounds):
        text = (
            f"The newest calibration is of the result of round {calibration.get('round', '?')}, "
            f"and says nothing of that of round {rounds[-1]['round']}."
        )
        return Statement(topic, Judgement.UNKNOWN, text, CALIBRATE if final else LATER)
    tests = [simulated.get("p"), calibration.get("measurement_test")]
    found = [t.get(key) for t, key in zip(tests, ("all", "p"), strict=True) if _is_row(t)]
    p = [value for value in found if isinstance(value, int | float)]
    factor = simulated.get("factor")
    off = (
        _is_row(factor)
        and _has(factor, "value")
        and _has(factor, "error")
        and abs(factor["value"] - 1) > 2 * factor["error"]
    )
    text = " ".join(str(sentence) for sentence in says)
    good = p and min(p) >= SMALL and not off
    return Statement(topic, Judgement.GOOD if good else Judgement.ATTENTION, text)


def _is_row(value: object) -> TypeGuard[Row]:
    return isinstance(value, Mapping)


def _calibration(final: Row, samples: object) -> Statement:
    """Returns whether samples spread as much as they err."""
    topic = "Calibration"
    what = "Whether the standard deviation of the samples is as large as their error is not known"
    without = f"{what}: `diffem calibrate` takes a prior, and the run has trained none."
    unknown = (
        Statement(topic, Judgement.UNKNOWN, without)
        if final and not final.get("prior")
        else Statement(topic, Judgement.UNKNOWN, f"{what} yet.", CALIBRATE if final else LATER)
    )
    if not (_has(final, "psnr") and _has(final, "psnr_mean") and isinstance(samples, int)):
        return unknown
    gap = final["psnr_mean"] - final["psnr"]
    ratio = spread_over_error(gap, samples)
    if ratio is None:
        return unknown
    found = (
        f"The mean of {samples} samples is {gap:.2f} dB better than one sample (held-out; "
        f"{expected_gap(samples):.2f} dB if samples have the posterior's law)"
    )
    if ratio < SPREAD[0]:
        advice = (
            "Take sampler=sde or more sampler.steps, as in `diffem evaluate RUN sampler=sde "
            f"sampler.steps=64`; or train {BY_HEART}."
        )
        text = f"{found}: they spread too little, about {ratio:.2f} times their error."
        return Statement(topic, Judgement.ATTENTION, text, advice)
    if ratio > SPREAD[1]:
        advice = "Train longer: EM narrows samples slowly; em.relax=2, the default, speeds it up."
        text = f"{found}: they spread too much, about {ratio:.2f} times their error."
        return Statement(topic, Judgement.ATTENTION, text, advice)
    text = f"{found}: on average they spread about as much as they err, {ratio:.2f} times."
    return Statement(topic, Judgement.GOOD, text)


def expected_gap(samples: int) -> float:
    """Returns by how many dB the mean of n samples of the posterior is better than one.

    With the posterior's variance V the expected squared error of a sample is 2 V, and that of the
    mean (1 + 1/n) V.
    """
    return 10 * math.log10(2 / (1 + 1 / samples))


def spread_over_error(gap: float, samples: int) -> float | None:
    """Returns the standard deviation of samples over the error of their mean, from a gap in dB.

    With r = spread² / error² of the mean of infinitely many samples, a sample has the squared
    error (1 + r), and the mean of n has (1 + r/n), in units of error². It is 1 for `expected_gap`.

    Arguments:
        gap: The PSNR of the mean minus that of one sample.
        samples: n, at least 2.

    Returns:
        None for a gap beyond that of pure spread, 10 log₁₀ n.
    """
    g = 10 ** min(gap / 10, 300)  # a float holds no more
    if g >= samples:
        return None
    return math.sqrt(max(g - 1, 0.0) / (1 - g / samples))


def _diversity(rounds: Sequence[Row], final: Row) -> Iterator[Statement]:
    """Yields that the images are too much alike, or too little, if they are."""
    topic = "Diversity"
    if _has(final, "diversity") and _has(final, "diversity_truth"):
        value, truth = final["diversity"], final["diversity_truth"]
        if truth > 0 and not DIVERSE[0] <= value / truth <= DIVERSE[1]:
            how = "less" if value < truth else "more"
            text = (
                f"Held-out reconstructions differ {how} from one another than the clean images "
                f"do: diversity {value:.3f} against {truth:.3f}."
            )
            advice = "Check the channel: a blur or a noise assumed wrongly changes the diversity."
            yield Statement(topic, Judgement.ATTENTION, text, advice)
        return
    if collapse := rounds[-1].get("collapse"):
        fractions = ", ".join(f"{name} {value:.2f}" for name, value in collapse.items())
        text = f"The reconstructions become alike: of what round 0 had there is left {fractions}."
        scores = [row["hidden_entries"] for row in rounds if _has(row, "hidden_entries")]
        if len(scores) > 1 and scores[-1] < scores[0]:
            text += (
                " EM may be collapsing, or round 0 was more diverse than true images are: hidden "
                "parts of held-out measurements are predicted better than by it."
            )
            yield Statement(topic, Judgement.ATTENTION, text, LOOK)
            return
        yield Statement(topic, Judgement.ATTENTION, f"{text} EM may be collapsing.", EARLIER)
        return
    known = [row["diversity"] for row in rounds if _has(row, "diversity")]
    if len(known) > 1 and known[-1] < COLLAPSED * known[0] and not is_relaxed(rounds):
        text = (
            f"The reconstructions become alike: their diversity fell from {known[0]:.3f} in round "
            f"0 to {known[-1]:.3f}. EM may be collapsing."
        )
        yield Statement(topic, Judgement.ATTENTION, text, EARLIER)


LOOK = "Compare the reconstructions over the rounds below before you change anything."
EARLIER = "Take an earlier round, fewer rounds, longer M-steps or more sampler.steps."


def _memorisation(prior: Row) -> Iterator[Statement]:
    """Yields whether samples of the prior are copies of training reconstructions."""
    if not (_has(prior, "nearest") and _has(prior, "nearest_heldout")):
        return
    own, other = prior["nearest"], prior["nearest_heldout"]
    found = (
        f"A sample of the prior is {own:.3f} from the nearest training reconstruction (median, "
        f"root mean square over pixels), a held-out reconstruction {other:.3f}"
    )
    if own < COPIED * other:
        advice = (
            "Give more measurements, a smaller network or fewer prior.steps: the prior repeats "
            "its training images."
        )
        text = f"{found}: the prior may copy what it was trained on."
        yield Statement("Memorisation", Judgement.ATTENTION, text, advice)
        return
    yield Statement("Memorisation", Judgement.GOOD, f"{found}: the prior does not copy.")


def _unmeasured(found: object) -> Statement:
    """Returns what no measurement shows.

    Arguments:
        found: Sentences on pixels and frequencies that no measurement has; None if not looked at.
    """
    topic = "What was measured"
    if not isinstance(found, list):
        text = "Which directions of an image the measurements leave out is not known."
        return Statement(topic, Judgement.UNKNOWN, text)
    if not found:
        text = "Every direction of an image is measured by some of the training measurements."
        return Statement(topic, Judgement.GOOD, text)
    text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in found)
    return Statement(topic, Judgement.ATTENTION, text)


def _channel(last: Row, *, clean: bool) -> Statement:
    """Returns what is known of the channel: never that it is the true one."""
    text = (
        "Whether the stated channel is the true one no figure here can prove: a noise assumed too "
        "small, or a blur too narrow, leaves χ² near 1."
    )
    if estimate := last.get("estimate"):
        learned = ", ".join(f"{name} {level:.4g}" for name, level in estimate.items())
        text = f"Learned from the measurements: {learned}. {text}"
    if clean:
        text = f"This run learned from clean images. {text}"
    return Statement("Channel", Judgement.UNKNOWN, text)


def _has(row: Row, name: str) -> bool:
    """Returns whether a row has a finite number of a name."""
    value = row.get(name)
    return isinstance(value, int | float) and math.isfinite(value)
