"""The report of a run: metrics of each round, figures, `summary.json` and the closing table."""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.data.measurements import MeasurementSet
from diffem.em.module import DenoiserModule
from diffem.em.round import Round
from diffem.logging.rounds import log_round
from diffem.metric import Evaluation, psnr, scores, sinkhorn_divergence, spread, variety
from diffem.metric.diversity import IMAGES
from diffem.posterior import Posterior, reconstruct
from diffem.posterior.gaussian import GaussianPosterior
from diffem.report.closing import print_closing, print_files, print_scores
from diffem.report.figure import save_curves, save_panel, save_samples
from diffem.report.sets import feature_scores, prior_scores, recorruption_scores, variety_scores
from diffem.runtime.progress import progress_bar
from diffem.storage.atomic import write_file
from diffem.storage.reconstructions import ReconstructionStore

SHOWN = 6  # images in a panel
PACKAGES = ("torch", "lightning", "azula", "hydra-core", "torchmetrics")


@dataclass
class RunReport:
    """Collects what a run did and writes it down.

    Attributes:
        run_dir: The run's directory.
        about: What heads the summary: dataset, corruption, method, seed, devices.
        evaluation: How much is evaluated, and in which feature spaces.
        train: The training measurements.
        heldout: The held-out measurements.
        store: The rounds' reconstructions.
    """

    run_dir: Path
    about: Mapping[str, Any]
    evaluation: Evaluation
    train: MeasurementSet
    heldout: MeasurementSet
    store: ReconstructionStore
    rounds: list[dict[str, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    features: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Takes up what an earlier process of the run reported."""
        if self.journal.is_file():
            held = json.loads(self.journal.read_text())
            self.rounds, self.start = held["rounds"], self.start - held["wall_seconds"]

    @property
    def journal(self) -> Path:
        """The file of the rounds so far."""
        return self.run_dir / "rounds.json"

    @property
    def wall_seconds(self) -> float:
        """The run's time, over all its processes."""
        return round(time.perf_counter() - self.start, 1)

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        folder = self.run_dir / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def on_round(self, module: DenoiserModule, round: Round) -> None:
        """Scores a committed round, draws its panel and logs both.

        Arguments:
            module: The module, on its device and in its trainer.
            round: The round.
        """
        k, posterior, device = round.number, round.posterior, module.device
        n = min(self.evaluation.subset, len(self.train))
        first = self.store.open(k)
        measurement = round.measurements.measurement.select(slice(n))
        with progress_bar(
            f"round {k}  evaluation", self.evaluation.samples - 1, "samples"
        ) as advance:
            samples = torch.stack(
                [
                    first.__getitems__(range(n)).x,
                    *self._samples(
                        posterior, measurement, (k,), self.evaluation.samples - 1, device, advance
                    ),
                ]
            )
        metrics = self._score_store(k, round.measurements)
        metrics["psnr_mean"] = float(psnr(samples.mean(dim=0), self.train.truth[:n]).mean())
        metrics["spread"] = spread(samples)
        metrics |= round.costs
        self._keep({"round": k, **metrics, **round.estimate()}, round)
        metrics |= {
            f"estimated_{name}": v for name, v in round.estimate().get("estimate", {}).items()
        }
        panel = self.figures / f"round_{k:03d}.png"
        self._panel(
            panel, f"round {k}: PSNR {metrics['psnr']:.2f} dB", samples, round.measurements
        )
        log_round(
            module.trainer.loggers, {"round": k, **metrics}, panel, step=module.trainer.global_step
        )

    def _keep(self, row: dict[str, Any], round: Round) -> None:
        """Keeps a round's row, in place of one that a killed process may have left."""
        if isinstance(posterior := round.posterior, GaussianPosterior):
            heldout = self.heldout.under(round.measurements.channel).measurement
            mean = posterior.mean(heldout.select(slice(self.evaluation.heldout)))
            score = psnr(mean, self.heldout.truth[: self.evaluation.heldout])
            row["heldout_gaussian_psnr_mean"] = float(score.mean())
        self.rounds = [*(r for r in self.rounds if r["round"] < row["round"]), row]
        content = {"rounds": self.rounds, "wall_seconds": self.wall_seconds}
        write_file(self.journal, lambda file: file.write(json.dumps(content, indent=1).encode()))

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
            channel: The channel as it is assumed, or was learned.
            prior: Draws n samples from the prior, (n, *shape); None if there is none.
            device: Where to sample.
        """
        n = min(self.evaluation.heldout, len(self.heldout))
        heldout = self.heldout.under(channel)
        truth, measurement = heldout.truth[:n], heldout.measurement.select(slice(n))
        with progress_bar("held-out  evaluation", self.evaluation.samples, "samples") as advance:
            samples = self._samples(
                posterior, measurement, ("heldout",), self.evaluation.samples, device, advance
            )
        stacked = torch.stack(samples)
        score = scores(stacked[0], truth, channel, measurement)
        final: dict[str, Any] = {name: float(value.mean()) for name, value in score.items()}
        final["psnr_mean"] = float(psnr(stacked.mean(dim=0), truth).mean())
        if truth.ndim == 2:
            final["sinkhorn"] = sinkhorn_divergence(stacked[0], truth)
        final["gaussian_psnr_mean"] = self.rounds[0].get("heldout_gaussian_psnr_mean")
        self._panel(self.figures / "heldout.png", "held-out measurements", stacked, heldout)
        final |= variety_scores(stacked, truth)
        final |= recorruption_scores(stacked, truth, channel, measurement, seed=self.about["seed"])
        if (lpips := self.evaluation.lpips) is not None:
            final[lpips.name] = float(lpips(stacked[0].to(device), truth.to(device)).mean())
        self._score_sets(final, stacked[0], prior, device)
        save_curves(self.figures / "curves.png", self.rounds, variety(self.train.truth))
        self._write(final)
        print_closing(self.about, self.rounds, final)
        print_scores(self.features)
        print_files(self.run_dir)

    def _samples(
        self,
        posterior: Posterior,
        measurement: Measurement,
        key: Sequence[int | str],
        count: int,
        device: torch.device,
        advance: Callable[[], None],
    ) -> list[Tensor]:
        """Draws samples of each measurement, chunk by chunk, without touching any other draw."""
        # Equal chunks: the padding of a short one would be work for nothing.
        n = len(measurement.y)
        size = math.ceil(n / math.ceil(n / self.store.chunk_size))
        samples = []
        for s in range(count):
            chunks = [
                reconstruct(
                    posterior,
                    measurement.select(slice(start, start + size)),
                    size=size,
                    key=(self.about["seed"], "evaluation", *key, s, start),
                    device=device,
                )
                for start in range(0, n, size)
            ]
            samples.append(torch.cat(chunks))
            advance()
        return samples

    def _score_store(self, k: int, measurements: MeasurementSet) -> dict[str, Any]:
        """Returns the mean scores of a round's reconstructions, chunk by chunk."""
        data, total = self.store.open(k), {}
        for chunk in self.store.chunks:
            rows = self.store.rows(chunk)
            x = data.__getitems__(range(rows.start, rows.stop)).x
            measurement = measurements.measurement.select(rows)
            for name, value in scores(
                x, measurements.truth[rows], measurements.channel, measurement
            ).items():
                total[name] = total.get(name, 0.0) + float(value.double().sum())
        means = {name: value / len(data) for name, value in total.items()}
        first = data.__getitems__(range(min(len(data), IMAGES))).x
        means |= variety(first)
        if first.ndim == 2:
            means["sinkhorn"] = sinkhorn_divergence(first, self.heldout.truth)
        return means

    def _score_sets(
        self,
        final: dict[str, Any],
        x: Tensor,
        prior: Callable[[int], Tensor] | None,
        device: torch.device,
    ) -> None:
        """Adds the scores of held-out reconstructions and of the prior's samples as sets."""
        sets, train, heldout = {"held-out": x}, self.train.truth, self.heldout.truth
        final["prior"] = None
        if prior is not None:
            sets["prior"] = prior(self.evaluation.prior)
            path = self.figures / "prior.png"
            save_samples(path, "samples of the prior", sets["prior"][:64])
            final["prior"] = prior_scores(sets["prior"], train, heldout)
        self.features = feature_scores(
            self.evaluation.features, sets, train, heldout, device=device
        )
        final |= self.features["held-out"]
        if prior is not None:
            final["prior"] |= self.features["prior"]

    def _panel(
        self, path: Path, title: str, samples: Tensor, measurements: MeasurementSet
    ) -> None:
        measurement = measurements.measurement.select(slice(SHOWN if samples.ndim > 3 else None))
        lifted = measurements.channel.lift(measurement)[: samples.shape[1]]
        n = len(lifted)
        columns = (lifted, samples[0, :n], samples[:, :n].mean(0), samples[:, :n].std(0))
        save_panel(path, title, (*columns, measurements.truth[:n]))

    def _write(self, final: dict[str, Any]) -> None:
        versions = {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}
        summary = {
            **self.about,
            "versions": versions,
            "wall_seconds": self.wall_seconds,
            "rounds": self.rounds,
            "final": final,
        }
        text = json.dumps(summary, indent=1) + "\n"
        write_file(self.run_dir / "summary.json", lambda file: file.write(text.encode()))
