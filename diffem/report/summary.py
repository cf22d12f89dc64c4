"""The report of a run: scores of each round, figures, `summary.json` and the closing table."""

import json
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
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
    Metric,
    describe_scores,
    diversity_metrics,
    find_collapse,
    nearest,
    posterior_std,
    psnr,
    rms_change,
    sinkhorn_divergence,
)
from diffem.metric.bootstrap import standard_error
from diffem.metric.diversity import CHANGE, COLLAPSED, IMAGES, POSTERIOR_STD
from diffem.metric.energy import HIDDEN_ENTRIES
from diffem.metric.sinkhorn import SINKHORN
from diffem.posterior import Posterior, sample_chunks
from diffem.posterior.gaussian import GaussianPosterior
from diffem.posterior.mixture import MixturePosterior
from diffem.posterior.posterior import chunk_count
from diffem.report.earlier import EarlierRun, compare_with_earlier
from diffem.report.figures import save_curves, save_panel, save_samples
from diffem.report.groups import group_scores
from diffem.report.page import write_run_page
from diffem.report.pictures import save_pictures, save_prior_pictures
from diffem.report.record import are_rows, logged_rounds
from diffem.report.round_figures import RoundFigures, round_figures
from diffem.report.scoring import compute, left_out, mean_of
from diffem.report.sets import feature_scores, measurement_distance_scores, prior_scores
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
from diffem.runtime.progress import plain_console, progress_bar, say, warn
from diffem.runtime.rank import global_rank
from diffem.runtime.signals import at_exit
from diffem.storage.atomic import read_json, write_file
from diffem.storage.numbered import free_number
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.run_dir import PAGE
from diffem.storage.status import RunStatus, State, of_error, write_ended
from diffem.storage.strict_json import to_json

SHOWN = 6  # images in a panel
PAIRS = 12  # samples of the prior that are shown beside what is nearest to them
COMPARED = 64  # samples of the prior that are compared with the training reconstructions
SCORED = 4096  # reconstructions of a round, the first ones, that metrics are computed of
PACKAGES = ("torch", "lightning", "azula", "hydra-core", "torchmetrics")
BEST = "best.safetensors"  # in checkpoints/: the weights of the round with the best figure
FILES = (PAGE, "summary.json", "metrics.jsonl", "figures", "reconstructions", "checkpoints")


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
        rounds: The scores of the rounds so far.
        student: The scores of the student, once it was evaluated.
    """

    run_dir: Path
    about: Mapping[str, Any]
    evaluation: Evaluation
    train: MeasurementSet
    heldout: MeasurementSet
    store: ReconstructionStore
    figure: str = HIDDEN_ENTRIES.name
    earlier: Sequence[EarlierRun] = ()
    rounds: list[dict[str, Any]] = field(default_factory=list)
    student: dict[str, Any] | None = None
    start: float = field(default_factory=time.perf_counter)
    _writing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _page_failed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        """Reads the rounds that an earlier process of the run reported."""
        held = read_json(self.journal) or {}
        rounds, seconds = held.get("rounds"), held.get("wall_seconds")
        own = "run" not in self.about or held.get("run") == self.about["run"]
        if own and are_rows(rounds) and isinstance(seconds, int | float):
            self.rounds, self.start = rounds, self.start - seconds
            return
        # A new run has no log; without its journal is also a run that was killed after the lines
        # below and before the next round.
        self.rounds = logged_rounds(self.run_dir / "metrics.jsonl")
        if self.journal.is_file():
            warn(
                f"{self.journal} is damaged or of another run; the scores of its rounds are taken "
                f"from metrics.jsonl, which has {len(self.rounds)}"
            )
            if global_rank() == 0:
                self.journal.replace(self.run_dir / "rounds.damaged.json")

    @property
    def journal(self) -> Path:
        """The file of the rounds so far."""
        return self.run_dir / "rounds.json"

    @property
    def wall_seconds(self) -> float:
        """The wall time of the run, over all its processes."""
        return round(time.perf_counter() - self.start, 1)

    @property
    def best_round(self) -> int | None:
        """The round whose network has the best figure so far; None if no network has one."""
        rows = [
            row for row in self.rounds if row["round"] > 0 and row.get(self.figure) is not None
        ]
        return min(rows, key=lambda row: row[self.figure])["round"] if rows else None

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
            "wall_seconds": self.wall_seconds,
            "samples": self.evaluation.samples,
            "metrics": describe_scores(self.evaluation.scores),
            "truth": self.truth_scores,
        }

    @contextmanager
    def following(self) -> Iterator[None]:
        """Opens the scope of a run, whose page says how it ended however it ends.

        A process that is killed can say nothing: its page stays as it was after the last round.
        """
        if global_rank():
            yield
            return
        at_exit.append(self._on_exit)
        try:
            self.write_page(RunStatus(State.RUNNING))
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code not in (0, None):
                self._end(of_error(error))
            raise
        finally:
            at_exit.remove(self._on_exit)

    def write_page(self, status: RunStatus) -> None:
        """Writes the run's page. A failure is a warning, once: no run ends for its page.

        Arguments:
            status: Where the run is.
        """
        # A signal's handler interrupts this process anywhere, and must not wait for it.
        if self._page_failed or not self._writing.acquire(blocking=False):
            return
        try:
            write_run_page(self.run_dir, status)
        except Exception as error:
            self._page_failed = True
            warn(f"{self.run_dir / PAGE} is not written: {type(error).__name__}: {error}")
        finally:
            self._writing.release()

    def _on_exit(self, line: str) -> None:
        """Says in the run directory with which last line the process ends."""
        state = State.STOPPED if line.startswith("stopped") else State.FAILED
        self._end(RunStatus(state, line))

    def _end(self, status: RunStatus) -> None:
        """Says in the run directory how the process ends."""
        with suppress(OSError, UserError):  # as on a full disk
            write_ended(self.run_dir, status)
        self.write_page(status)

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
        n, more = min(self.evaluation.subset, len(self.train)), self.evaluation.samples - 1
        part = MeasurementSet(measurements.select(slice(n)), measurements.channel)
        if round.costs.get("redrawn", 1.0) == 1.0:
            samples = self.store.open(k).__getitems__(range(n)).x[None]
            if more:
                drawn = self._samples(round.posterior, part, (k,), more, module.device)
                samples = torch.cat([samples, drawn])
        else:  # some of the round's reconstructions are of other posteriors
            samples = self._samples(round.posterior, part, (k,), more + 1, module.device)
        scores, left_out = self._score_store(k, measurements, module.device)
        scores |= self._score_means(samples, measurements, module.device)
        scores[POSTERIOR_STD.name] = posterior_std(samples)
        figures = self._figures(round, module.device)
        scores |= figures.scores | round.costs
        collapse = self._collapse({"round": k, **scores})
        self._keep({"round": k, **scores, **left_out, **collapse, **round.estimate()}, round)
        scores |= {
            f"estimated_{name}": v for name, v in round.estimate().get("estimate", {}).items()
        }
        scores = {n: value for n, value in scores.items() if not n.endswith("_error")}
        panel = self.figures / f"round_{k:03d}.png"
        self._panel(panel, self._title(k, scores), samples, measurements)
        self._pictures(panel, samples, measurements)
        log_round(
            module.trainer.loggers, {"round": k, **scores}, panel, step=module.trainer.global_step
        )
        self.write_page(RunStatus(State.RUNNING))
        return figures.parts

    def _figures(self, round: Round, device: torch.device) -> RoundFigures:
        """Returns a round's figures without ground truth, on held-out measurements."""
        heldout = self.heldout.under(round.measurements.channel)
        part = MeasurementSet(heldout.select(slice(self.evaluation.subset)), heldout.channel)
        key = (round.number, "heldout")
        (x,) = self._samples(round.posterior, part, key, 1, device)
        return round_figures(x, part, self.about["seed"], "figures", round.number)

    def _collapse(self, row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Returns what is left of round 0's diversity, if a round collapsed; the first one warns.

        Arguments:
            row: The round's number and its scores.
        """
        before = [held for held in self.rounds if held["round"] < row["round"]]
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
        scores, _ = self._evaluate(student, channel, None, device, "student_")
        saved = evaluations - 1  # of each sample
        self.student = {name: value for name, value in scores.items() if name != "prior"} | {
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
        if not self.rounds:
            raise UserError(
                f"{self.journal} and metrics.jsonl beside it are damaged: what the rounds scored "
                "and cost is lost, and there is no summary; `diffem evaluate` scores the result"
            )
        final, features = self._evaluate(posterior, channel, prior, device)
        if (hidden := self.rounds[-1].get(HIDDEN_ENTRIES.name)) is not None:
            final[HIDDEN_ENTRIES.name] = hidden  # of the same posterior
        if (floor := self.rounds[0].get("heldout_init_psnr_mean")) is not None:
            final["init_psnr_mean"] = floor
        save_curves(
            self.figures / "curves.png",
            self.rounds,
            self.evaluation.scores,
            self.truth_scores,
        )
        k = self.best_round
        best = None if k is None else {"figure": self.figure, "round": k}
        after = [self._score_earlier(run, posterior, device) for run in self.earlier]
        earlier, means = compare_with_earlier(self.earlier, after)
        final |= means
        results: dict[str, Any] = {"rounds": self.rounds, "final": final, "best": best}
        if earlier:
            results["earlier"] = earlier
        if self.student is not None:
            results["student"] = self.student
        self._write("summary", results)
        self.write_page(RunStatus(State.FINISHED))
        rows = [(str(row["round"]), row) for row in self.rounds]
        student = [] if self.student is None else [("student", self.student)]
        ends = [*rows, (HELDOUT, final), *student]
        print_table(self.about, (*self.evaluation.scores, *TIMES), ends)
        print_closing(self.rounds, final)
        if self.student is not None:
            print_student(self.student)
        if self.best_round not in (None, self.rounds[-1]["round"]):
            say(
                f"round {self.best_round} has the best {self.figure}; its weights are in "
                f"{self.run_dir / 'checkpoints' / BEST}"
            )
        print_left_out(self.evaluation.scores, [*rows, (HELDOUT, final)])
        print_features(features)
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
        prints the held-out scores below those of the run's summary.

        Arguments:
            posterior: The posterior.
            channel: The channel, as it was assumed or learned.
            prior: Draws n samples from the prior, (n, *shape); None if there is none.
            device: Where to sample.
            about: What differs from the run's own evaluation, for the file.
        """
        with free_number(self.run_dir, "evaluation") as name:
            final, features = self._evaluate(posterior, channel, prior, device, f"{name}_")
            self._write(name, {**about, "final": final})
        summary = self.run_dir / "summary.json"
        before = json.loads(summary.read_text())["final"] if summary.is_file() else {}
        rows = [("the run", before), (name, final)]
        print_table(self.about, self.evaluation.scores, rows, first="evaluation")
        print_features(features)
        plain_console().print(f"wrote {self.run_dir / name}.json", soft_wrap=True)
        for figure in sorted(self.figures.glob(f"{name}_*")):
            plain_console().print(f"wrote {figure}", soft_wrap=True)

    def _evaluate(
        self,
        posterior: Posterior,
        channel: Channel,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
        prefix: str = "",
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Returns the held-out scores and those in feature spaces; draws heldout and prior.png."""
        heldout = self.heldout.under(channel)
        n, count = min(self.evaluation.heldout, len(heldout)), self.evaluation.samples
        part = MeasurementSet(heldout.select(slice(n)), channel)
        samples = self._samples(posterior, part, ("heldout",), count, device)
        figure = self.figures / f"{prefix}heldout.png"
        self._panel(figure, "held-out measurements", samples, heldout)
        if not prefix:
            self._pictures(figure, samples, heldout)
        final = self._score_heldout(samples, heldout, device)
        path = self.figures / f"{prefix}prior.png"
        return final, self._score_sets(final, samples[0], prior, device, path)

    def _score_earlier(
        self, run: EarlierRun, posterior: Posterior, device: torch.device
    ) -> dict[str, Any]:
        """Returns the scores of an earlier run's held-out measurements under a posterior."""
        channel = run.heldout.channel
        part = MeasurementSet(run.heldout.select(slice(run.count)), channel)
        key = ("heldout", "earlier")
        samples = self._samples(posterior.under(channel), part, key, run.samples, device)
        return self._score_heldout(samples, run.heldout, device)

    def _samples(
        self,
        posterior: Posterior,
        measurements: MeasurementSet,
        key: Sequence[int | str],
        count: int,
        device: torch.device,
    ) -> Tensor:
        """Draws samples of each posterior, (count, n, *shape), without affecting other draws."""
        chunks = sample_chunks(
            posterior, measurements, count,
            chunk_size=self.store.chunk_size,
            key=(self.about["seed"], "evaluation", *key),
            device=device,
        )  # fmt: skip
        total = chunk_count(len(measurements), self.store.chunk_size)
        of_round = "held-out" if key[-1] == "heldout" else "evaluation"
        name = "held-out  evaluation" if key[0] == "heldout" else f"round {key[0]}  {of_round}"
        samples = []
        with progress_bar(name, total, "chunks") as advance:
            for chunk in chunks:
                samples.append(chunk)
                advance()
        return torch.cat(samples, dim=1)

    @property
    def _metrics(self) -> list[Metric]:
        """The metrics that are computed in each round."""
        return [metric for metric in self.evaluation.metrics.values() if not metric.heavy]

    def _score_store(
        self, k: int, measurements: MeasurementSet, device: torch.device
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the mean scores of a round's first 4,096 reconstructions.

        Returns:
            The scores; and the number that was `scored`, and what `left_out` returns.
        """
        data, values = self.store.open(k), dict[str, list[Tensor]]()
        scored = min(len(data), SCORED)
        for start in range(0, scored, self.store.chunk_size):
            rows = slice(start, min(scored, start + self.store.chunk_size))
            x = data.__getitems__(range(rows.start, rows.stop)).x
            for metric in self._metrics:
                name, value = metric.score.name, compute(metric, x, measurements, rows, device)
                values.setdefault(name, []).append(value)
        all_of = {name: torch.cat(value) for name, value in values.items()}
        means: dict[str, Any] = {name: mean_of(value) for name, value in all_of.items()}
        first = data.__getitems__(range(min(len(data), IMAGES))).x
        means |= {
            f"{name}_error": error
            for name, value in all_of.items()
            if (error := standard_error(value)) is not None
        }
        means |= diversity_metrics(first)
        if k and self.store.is_intact(k - 1):
            before = self.store.open(k - 1).__getitems__(range(len(first))).x
            means[CHANGE.name] = rms_change(first, before)
        if first.ndim == 2 and self.heldout.truth is not None:
            means[SINKHORN.name] = sinkhorn_divergence(first, self.heldout.truth)
        return means, {"scored": scored, **left_out(all_of)}

    def _score_means(
        self, samples: Tensor, measurements: MeasurementSet, device: torch.device
    ) -> dict[str, float | None]:
        """Returns the scores of the mean of samples, (S, n, *shape), of the first n posteriors."""
        mean, rows = samples.mean(dim=0), slice(samples.shape[1])
        return {
            metric.score.of_the_mean().name: mean_of(
                compute(metric, mean, measurements, rows, device)
            )
            for metric in self._metrics
            if metric.of_mean
        }

    def _score_heldout(
        self, samples: Tensor, heldout: MeasurementSet, device: torch.device
    ) -> dict[str, Any]:
        """Returns the scores of samples, (S, n, *shape), of the first n held-out posteriors."""
        first, rows = samples[0], slice(samples.shape[1])
        truth = None if heldout.truth is None else heldout.truth[rows]
        measurement = heldout.select(rows)
        lpips = [] if self.evaluation.lpips is None else [self.evaluation.lpips]
        values = {
            metric.score.name: compute(metric, first, heldout, rows, device)
            for metric in (*self.evaluation.metrics.values(), *lpips)
        }
        final: dict[str, Any] = {name: mean_of(value) for name, value in values.items()}
        final |= left_out(values)
        final |= self._score_means(samples, heldout, device)
        if heldout.groups is not None and truth is not None:
            final |= group_scores(psnr(samples.mean(dim=0), truth), heldout.groups[rows])
        if first.ndim == 2 and truth is not None:
            final[SINKHORN.name] = sinkhorn_divergence(first, truth)
        final |= diversity_metrics(first)
        if truth is not None:
            final |= {f"{name}_truth": value for name, value in diversity_metrics(truth).items()}
        final[POSTERIOR_STD.name] = posterior_std(samples)
        figures = round_figures(first, heldout, self.about["seed"], "figures", "heldout").scores
        return (
            final
            | figures
            | measurement_distance_scores(
                samples, truth, heldout.channel, measurement, seed=self.about["seed"]
            )
        )

    def _score_sets(
        self,
        final: dict[str, Any],
        x: Tensor,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
        figure: Path,
    ) -> dict[str, dict[str, float]]:
        """Adds the scores of held-out reconstructions and of the prior's samples as sets.

        Returns:
            The scores in the feature spaces: {set: {score: value}}.
        """
        sets, train, heldout = {"held-out": x}, self.train.truth, self.heldout.truth
        final["prior"] = None
        if prior is not None:
            sets["prior"] = prior(self.evaluation.prior)
            save_samples(figure, "samples of the prior", sets["prior"][:64])
            final["prior"] = prior_scores(sets["prior"], train, heldout)
            if self.rounds and self.store.is_intact(self.rounds[-1]["round"]):
                final["prior"] |= self._compare_prior(sets["prior"], x, figure)
        if train is None or heldout is None:
            return {}
        features = feature_scores(self.evaluation.features, sets, train, heldout, device=device)
        final |= features["held-out"]
        if prior is not None:
            final["prior"] |= features["prior"]
        return features

    def _compare_prior(self, prior: Tensor, x: Tensor, figure: Path) -> dict[str, float]:
        """Compares samples of the prior with the training reconstructions nearest to them.

        Arguments:
            prior: Samples of the prior, (N, *shape).
            x: Held-out reconstructions, (M, *shape), which nothing was trained on.
            figure: The figure of the prior's samples, beside which the pairs are saved.

        Returns:
            The median distance to the nearest training reconstruction, `nearest`, and that of
            held-out reconstructions, `nearest_heldout`.
        """
        prior, x = prior[:COMPARED], x[:COMPARED]
        data = self.store.open(self.rounds[-1]["round"])
        parts = (range(*self.store.rows(chunk).indices(len(data))) for chunk in self.store.chunks)
        both = torch.cat([prior, x])
        distance, found = nearest(both, (data.__getitems__(part).x for part in parts))
        own, other = distance.split([len(prior), len(x)])
        closest = own.argsort()[:PAIRS]
        pairs = (prior[closest], found[closest], own[closest])
        save_prior_pictures(figure.with_suffix(".npz"), prior, pairs)
        return {"nearest": float(own.median()), "nearest_heldout": float(other.median())}

    def _keep(self, row: dict[str, Any], round: Round) -> None:
        """Writes a round's row, in place of one that a killed process may have left."""
        truth, posterior = self.heldout.truth, round.posterior
        if isinstance(posterior, ConfinedPosterior):
            posterior = posterior.posterior
        if isinstance(posterior, GaussianPosterior | MixturePosterior) and truth is not None:
            heldout = self.heldout.under(round.measurements.channel)
            mean = posterior.mean(heldout.select(slice(self.evaluation.heldout)))
            score = psnr(mean, truth[: self.evaluation.heldout])
            row["heldout_init_psnr_mean"] = float(score.mean())
        self.rounds = [*(r for r in self.rounds if r["round"] < row["round"]), row]
        content = to_json({**self.head, "rounds": self.rounds}, indent=1)
        write_file(self.journal, lambda file: file.write(content.encode()))

    def _title(self, k: int, scores: Mapping[str, float]) -> str:
        """Returns the title of a round's panel: the round and its first metric, if any."""
        if not self._metrics:
            return f"round {k}"
        score = self._metrics[0].score
        return f"round {k}: {score.label} {score.text(scores[score.name])} {score.unit}".rstrip()

    def _panel(
        self, path: Path, title: str, samples: Tensor, measurements: MeasurementSet
    ) -> None:
        n = min(samples.shape[1], SHOWN) if samples.ndim > 3 else samples.shape[1]
        lifted = measurements.channel.lift(measurements.select(slice(n)))
        columns = (lifted, samples[0, :n], samples[:, :n].mean(0), samples[:, :n].std(0))
        truth = [] if measurements.truth is None else [measurements.truth[:n]]
        save_panel(path, title, (*columns, *truth))

    def _pictures(self, panel: Path, samples: Tensor, measurements: MeasurementSet) -> None:
        """Saves what the page shows of measurements, beside their panel."""
        n = samples.shape[1]
        lifted = measurements.channel.lift(measurements.select(slice(n)))
        truth = None if measurements.truth is None else measurements.truth[:n]
        save_pictures(panel.with_suffix(".npz"), samples, lifted, truth)

    def _write(self, name: str, results: Mapping[str, Any]) -> None:
        text = to_json({**self.head, **results}, indent=1) + "\n"
        write_file(self.run_dir / f"{name}.json", lambda file: file.write(text.encode()))
