"""The report of a run: scores of each round, figures, `summary.json` and the closing table."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffem.corruption import Channel
from diffem.data.measurements import MeasurementSet
from diffem.em.init import ConfinedPosterior
from diffem.em.module import DenoiserModule
from diffem.em.round import Round
from diffem.logging.rounds import log_round
from diffem.metric import (
    Evaluation,
    describe_scores,
    diversity_metrics,
    find_collapse,
    nearest,
    posterior_std,
    psnr,
)
from diffem.metric.diversity import COLLAPSED, POSTERIOR_STD
from diffem.metric.energy import HIDDEN_ENTRIES, HIDDEN_MSE
from diffem.posterior import Posterior
from diffem.posterior.gaussian import GaussianPosterior
from diffem.posterior.mixture import MixturePosterior
from diffem.report.earlier import EarlierRun, compare_with_earlier
from diffem.report.figures import save_curves, save_panel, save_samples
from diffem.report.journal import Journal
from diffem.report.live_page import LivePage
from diffem.report.pictures import save_pictures, save_prior_pictures
from diffem.report.record import read_record
from diffem.report.round_figures import RoundFigures, round_figures
from diffem.report.scorer import Scorer
from diffem.report.sets import feature_scores, prior_scores
from diffem.report.table import (
    HELDOUT,
    TIMES,
    print_closing,
    print_features,
    print_left_out,
    print_student,
    print_table,
)
from diffem.runtime.errors import UserError
from diffem.runtime.progress import plain_console, say, warn
from diffem.storage.atomic import write_text
from diffem.storage.figure import figures_of
from diffem.storage.numbered import free_number
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.rows import are_samples, is_relaxed
from diffem.storage.run_dir import PAGE
from diffem.storage.status import RunStatus, State
from diffem.storage.strict_json import to_json

SHOWN = 6  # images in a panel
PAIRS = 12  # samples of the prior that are shown beside what is nearest to them
COMPARED = 64  # samples of the prior that are compared with the training reconstructions
PACKAGES = ("torch", "lightning", "azula", "hydra-core", "torchmetrics")
BEST = "best.safetensors"  # in checkpoints/: the weights of the round with the best figure
FILES = (PAGE, "summary.json", "metrics.jsonl", "figures", "reconstructions", "checkpoints")


@dataclass
class Evaluated:
    """What an evaluation found, and the figures that are yet to be written."""

    final: dict[str, Any]
    """The held-out scores."""
    figures: list[Callable[[], None]]
    """Each writes a figure."""
    features: dict[str, dict[str, float]] = field(default_factory=dict)
    """The scores in feature spaces: {set: {score: value}}."""

    def draw(self) -> None:
        """Writes the figures."""
        for draw in self.figures:
            draw()


@dataclass
class RunReport:
    """Evaluates the rounds and the result of a run, and writes the report.

    Attributes:
        run_dir: The run directory.
        about: The head of the summary: dataset, corruption, method, seed, devices.
        evaluation: What is evaluated.
        train: The training measurements.
        heldout: The held-out measurements.
        store: The reconstructions of the rounds.
        figure: The figure without ground truth by which rounds are compared; lower is better.
        earlier: The runs that this one continues, whose held-out measurements are evaluated too.
        student: The scores of the student, once it was evaluated.
        journal: The scores of the rounds so far.
        page: The page that shows the run while it runs.
    """

    run_dir: Path
    about: Mapping[str, Any]
    evaluation: Evaluation
    train: MeasurementSet
    heldout: MeasurementSet
    store: ReconstructionStore
    figure: str = HIDDEN_MSE.name
    earlier: Sequence[EarlierRun] = ()
    student: dict[str, Any] | None = None
    journal: Journal = field(init=False)
    page: LivePage = field(init=False)

    def __post_init__(self) -> None:
        """Reads the rounds that an earlier process of the run reported."""
        self.journal = Journal(self.run_dir, self.about.get("run"))
        self.page = LivePage(self.run_dir)

    @property
    def compared_by(self) -> str:
        """The figure by which rounds are compared: one that those of an earlier version have too.

        Before `hidden_mse` it was `hidden_entries`.
        """
        earlier = any(
            row.get(HIDDEN_ENTRIES.name) is not None and row.get(HIDDEN_MSE.name) is None
            for row in self.journal.rounds
        )
        return HIDDEN_ENTRIES.name if earlier and self.figure == HIDDEN_MSE.name else self.figure

    @property
    def best_round(self) -> int | None:
        """The round whose network has the best figure so far; None if no network has one."""
        return self.journal.best_round(self.compared_by)

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        folder = self.run_dir / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def truth_scores(self) -> dict[str, float]:
        """What true training images score as a set; empty where they are not known."""
        return {} if self.train.truth is None else diversity_metrics(self.train.truth)

    @property
    def head(self) -> dict[str, Any]:
        """What `summary.json` and `rounds.json` say besides the scores."""
        versions = {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}
        return {
            **self.about,
            "versions": versions,
            "wall_seconds": self.journal.wall_seconds,
            "samples": self.evaluation.samples,
            "metrics": describe_scores(self.evaluation.scores),
            "truth": self.truth_scores,
        }

    def on_round(self, module: DenoiserModule, round: Round) -> dict[str, list[float]]:
        """Scores a committed round, draws its panel and logs both.

        Arguments:
            module: The module, on its device and in its trainer.
            round: The round.

        Returns:
            Figures without ground truth that are means over held-out measurements: the value of
            each.
        """
        k, measurements = round.number, round.measurements
        scorer = self._scorer(module.device)
        n, more = min(self.evaluation.subset, len(self.train)), self.evaluation.samples - 1
        part = MeasurementSet(measurements.select(slice(n)), measurements.channel)
        if are_samples(round.costs):
            samples = self.store.open(k).__getitems__(range(n)).x[None]
            if more:
                drawn = scorer.draw(round.posterior, part, more, key=(k,))
                samples = torch.cat([samples, drawn])
        else:  # some of the reconstructions are of other posteriors, or all are of several draws
            samples = scorer.draw(round.posterior, part, more + 1, key=(k,))
        scores, left_out = scorer.score_round(k, measurements, self.heldout.truth)
        scores |= scorer.score_means(samples, measurements)
        scores[POSTERIOR_STD.name] = posterior_std(samples)
        figures = self._figures(round, scorer)
        scores |= figures.scores | round.costs
        collapse = self._collapse({"round": k, **scores})
        row = {"round": k, **scores, **left_out, **collapse, **round.estimate()}
        self.journal.add(row | self._score_init(round), self.head)
        scores |= {
            f"estimated_{name}": v for name, v in round.estimate().get("estimate", {}).items()
        }
        scores = {n: value for n, value in scores.items() if not n.endswith("_error")}
        panel = self.figures / f"round_{k:03d}.png"
        title = f"round {k}"
        if scorer.metrics:
            score = scorer.metrics[0].score
            title += f": {score.label} {score.text(scores[score.name])} {score.unit}".rstrip()
        _save_panel(panel, title, samples, measurements)
        _save_pictures(panel, samples, measurements)
        log_round(
            module.trainer.loggers, {"round": k, **scores}, panel, step=module.trainer.global_step
        )
        self.page.write(RunStatus(State.RUNNING))
        return figures.parts

    def _scorer(self, device: torch.device) -> Scorer:
        return Scorer(self.evaluation, self.store, self.about["seed"], device)

    def _figures(self, round: Round, scorer: Scorer) -> RoundFigures:
        """Returns a round's figures without ground truth, on held-out measurements."""
        heldout = self.heldout.under(round.measurements.channel)
        part = MeasurementSet(heldout.select(slice(self.evaluation.subset)), heldout.channel)
        (x,) = scorer.draw(round.posterior, part, 1, key=(round.number, "heldout"))
        return round_figures(x, part, scorer.seed, "figures", round.number)

    def _score_init(self, round: Round) -> dict[str, float]:
        """Returns the held-out PSNR of a known posterior mean, as that of round 0; or nothing."""
        truth, posterior = self.heldout.truth, round.posterior
        if isinstance(posterior, ConfinedPosterior):
            posterior = posterior.posterior
        if truth is None or not isinstance(posterior, GaussianPosterior | MixturePosterior):
            return {}
        heldout = self.heldout.under(round.measurements.channel)
        mean = posterior.mean(heldout.select(slice(self.evaluation.heldout)))
        score = psnr(mean, truth[: self.evaluation.heldout])
        return {"heldout_init_psnr_mean": float(score.mean())}

    def _collapse(self, row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Returns what is left of round 0's diversity, if a round collapsed; the first one warns.

        Arguments:
            row: The round's number and its scores.
        """
        before = [held for held in self.journal.rounds if held["round"] < row["round"]]
        if is_relaxed([*before, row]):  # what is made of several draws differs less than samples
            return {}
        left = find_collapse(row, before[0]) if before else []
        if not left:
            return {}
        if not any("collapse" in held for held in before):
            (score, fraction), k = left[0], row["round"]
            warn(
                f"EM may be collapsing: the {score.label} of round {k} is {fraction:.2f} of round "
                f"0's, where at least {COLLAPSED[score]} is expected; look at "
                f"{self.figures / f'round_{k:03d}.png'}, and start again in a new run_dir with "
                "more sampler steps or longer M-steps"
            )
        return {"collapse": {score.name: fraction for score, fraction in left}}

    def evaluate_student(
        self,
        student: Posterior,
        channel: Channel,
        device: torch.device,
        *,
        spent: int,
        evaluations: int,
    ) -> None:
        """Evaluates a student as the posterior is, for `finish` to report.

        Arguments:
            student: The student.
            channel: The channel, as it is assumed or was learned.
            device: Where to sample.
            spent: The network function evaluations that it was distilled with.
            evaluations: Those of its teacher for one sample.
        """
        found = self._evaluate(student, channel, None, device, "student_")
        found.draw()
        saved = evaluations - 1  # of each sample
        self.student = {name: value for name, value in found.final.items() if name != "prior"} | {
            "evaluations": 1,
            "distillation": spent,
            "break_even": math.ceil(spent / saved) if saved > 0 else None,
        }

    def finish(
        self,
        posterior: Posterior,
        channel: Channel,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
    ) -> None:
        """Evaluates on the held-out measurements, and writes and prints the summary.

        Arguments:
            posterior: The final posterior.
            channel: The channel, as it is assumed or was learned.
            prior: Draws n samples from the prior, (n, *shape); None if there is none.
            device: Where to sample.
        """
        rounds = self.journal.rounds
        if not rounds:
            raise UserError(
                f"{self.journal.file} and metrics.jsonl beside it are damaged: what the rounds "
                "scored and cost is lost, and there is no summary; `diffem evaluate` scores the "
                "result"
            )
        found = self._evaluate(posterior, channel, prior, device)
        found.draw()
        final = found.final
        for score in (HIDDEN_ENTRIES, HIDDEN_MSE):
            if (hidden := rounds[-1].get(score.name)) is not None:
                final[score.name] = hidden  # of the same posterior
        if (floor := rounds[0].get("heldout_init_psnr_mean")) is not None:
            final["init_psnr_mean"] = floor
        save_curves(
            self.figures / "curves.png",
            rounds,
            self.evaluation.scores,
            self.truth_scores,
        )
        k = self.best_round
        best = None if k is None else {"figure": self.compared_by, "round": k}
        scorer = self._scorer(device)
        after = [_score_earlier(run, posterior, scorer) for run in self.earlier]
        earlier, means = compare_with_earlier(self.earlier, after)
        final |= means
        results: dict[str, Any] = {"rounds": rounds, "final": final, "best": best}
        if earlier:
            results["earlier"] = earlier
        if self.student is not None:
            results["student"] = self.student
        self._write("summary", results)
        self.page.write(RunStatus(State.FINISHED))
        rows = [(str(row["round"]), row) for row in rounds]
        student = [] if self.student is None else [("student", self.student)]
        ends = [*rows, (HELDOUT, final), *student]
        print_table(self.about, (*self.evaluation.scores, *TIMES), ends)
        print_closing(rounds, final)
        if self.student is not None:
            print_student(self.student)
        if k not in (None, rounds[-1]["round"]):
            say(
                f"round {k} has the best {self.compared_by}; its weights are in "
                f"{self.run_dir / 'checkpoints' / BEST}"
            )
        print_left_out(self.evaluation.scores, [*rows, (HELDOUT, final)])
        print_features(found.features)
        for name in FILES:
            plain_console().print(f"wrote {self.run_dir / name}", soft_wrap=True)

    def evaluate_again(
        self,
        posterior: Posterior,
        channel: Channel,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
        *,
        about: Mapping[str, Any],
    ) -> None:
        """Evaluates a finished run under other settings, beside what it has already.

        Writes evaluation_001.json, or the next number that is free, and figures of that name;
        prints the held-out scores below those of the run's summary. The scores come first: a disk
        that is full afterwards costs figures alone.

        Arguments:
            posterior: The posterior.
            channel: The channel, as it was assumed or learned.
            prior: Draws n samples from the prior, (n, *shape); None if there is none.
            device: Where to sample.
            about: What differs from the run's own evaluation, for the file.
        """
        before = read_record(self.run_dir).final
        with free_number(self.run_dir, "evaluation") as name:
            found = self._evaluate(posterior, channel, prior, device, f"{name}_")
            try:
                self._write(name, {**about, "final": found.final})
            finally:
                rows = [("the run", before), (name, found.final)]
                print_table(self.about, self.evaluation.scores, rows, first="evaluation")
                print_features(found.features)
        plain_console().print(f"wrote {self.run_dir / name}.json", soft_wrap=True)
        with figures_of(self.run_dir / f"{name}.json"):
            found.draw()
        for figure in sorted(self.figures.glob(f"{name}_*")):
            plain_console().print(f"wrote {figure}", soft_wrap=True)

    def _evaluate(
        self,
        posterior: Posterior,
        channel: Channel,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
        prefix: str = "",
    ) -> Evaluated:
        """Returns the scores, and what draws heldout.png and prior.png."""
        heldout, scorer = self.heldout.under(channel), self._scorer(device)
        n, count = min(self.evaluation.heldout, len(heldout)), self.evaluation.samples
        part = MeasurementSet(heldout.select(slice(n)), channel)
        samples = scorer.draw(posterior, part, count, key=("heldout",))
        figure = self.figures / f"{prefix}heldout.png"
        figures = [partial(_save_panel, figure, "held-out measurements", samples, heldout)]
        if not prefix:
            figures.append(partial(_save_pictures, figure, samples, heldout))
        found = Evaluated(scorer.score_heldout(samples, heldout), figures)
        self._score_sets(found, samples[0], prior, device, self.figures / f"{prefix}prior.png")
        return found

    def _score_sets(
        self,
        found: Evaluated,
        x: Tensor,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
        figure: Path,
    ) -> None:
        """Adds the scores of held-out reconstructions and of the prior's samples as sets.

        Arguments:
            found: The scores and figures, which those of the sets are added to.
            x: Held-out reconstructions, (M, *shape).
            prior: Draws samples from the prior; None if there is none.
            device: Where features are computed.
            figure: The figure of the prior's samples.
        """
        sets, train, heldout = {"held-out": x}, self.train.truth, self.heldout.truth
        final = found.final
        final["prior"] = None
        if prior is not None:
            sets["prior"] = prior(self.evaluation.prior)
            shown = sets["prior"][:64]
            found.figures.append(partial(save_samples, figure, "samples of the prior", shown))
            final["prior"] = prior_scores(sets["prior"], train, heldout)
            rounds = self.journal.rounds
            if rounds and self.store.is_intact(rounds[-1]["round"]):
                final["prior"] |= self._compare_prior(sets["prior"], x, found, figure)
        if train is None or heldout is None:
            return
        found.features = feature_scores(
            self.evaluation.features, sets, train, heldout, device=device
        )
        final |= found.features["held-out"]
        if prior is not None:
            final["prior"] |= found.features["prior"]

    def _compare_prior(
        self, prior: Tensor, x: Tensor, found: Evaluated, figure: Path
    ) -> dict[str, float]:
        """Compares samples of the prior with the training reconstructions nearest to them.

        Arguments:
            prior: Samples of the prior, (N, *shape).
            x: Held-out reconstructions, (M, *shape), which nothing was trained on.
            found: The figures, which the pairs are added to.
            figure: The figure of the prior's samples, beside which the pairs are saved.

        Returns:
            The median distance to the nearest training reconstruction, `nearest`, and that of
            held-out reconstructions, `nearest_heldout`.
        """
        prior, x = prior[:COMPARED], x[:COMPARED]
        data = self.store.open(self.journal.rounds[-1]["round"])
        parts = (range(*self.store.rows(chunk).indices(len(data))) for chunk in self.store.chunks)
        both = torch.cat([prior, x])
        distance, closest_to = nearest(both, (data.__getitems__(part).x for part in parts))
        own, other = distance.split([len(prior), len(x)])
        closest = own.argsort()[:PAIRS]
        pairs = (prior[closest], closest_to[closest], own[closest])
        pictures = figure.with_suffix(".npz")
        found.figures.append(partial(save_prior_pictures, pictures, prior, pairs))
        return {"nearest": float(own.median()), "nearest_heldout": float(other.median())}

    def _write(self, name: str, results: Mapping[str, Any]) -> None:
        text = to_json({**self.head, **results}, indent=1) + "\n"
        write_text(self.run_dir / f"{name}.json", text)


def _score_earlier(run: EarlierRun, posterior: Posterior, scorer: Scorer) -> dict[str, Any]:
    """Returns the scores of an earlier run's held-out measurements under a posterior."""
    channel = run.heldout.channel
    part = MeasurementSet(run.heldout.select(slice(run.count)), channel)
    key = ("heldout", "earlier")
    samples = scorer.draw(posterior.under(channel), part, run.samples, key=key)
    return scorer.score_heldout(samples, run.heldout)


def _save_panel(path: Path, title: str, samples: Tensor, measurements: MeasurementSet) -> None:
    """Saves a panel of the first measurements and their samples, (S, n, *shape)."""
    n = min(samples.shape[1], SHOWN) if samples.ndim > 3 else samples.shape[1]
    lifted = measurements.channel.lift(measurements.select(slice(n)))
    columns = (lifted, samples[0, :n], samples[:, :n].mean(0), samples[:, :n].std(0))
    truth = [] if measurements.truth is None else [measurements.truth[:n]]
    save_panel(path, title, (*columns, *truth))


def _save_pictures(panel: Path, samples: Tensor, measurements: MeasurementSet) -> None:
    """Saves what the page shows of measurements, beside their panel."""
    n = samples.shape[1]
    lifted = measurements.channel.lift(measurements.select(slice(n)))
    truth = None if measurements.truth is None else measurements.truth[:n]
    save_pictures(panel.with_suffix(".npz"), samples, lifted, truth)
