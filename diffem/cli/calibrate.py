"""Says how far to trust a finished run's samples: `diffem calibrate RUN`, `diffem.calibrate(run)`.

    diffem calibrate runs/mine
    diffem calibrate runs/mine --n 64 --measurements 512

Images x' are drawn from the run's prior, measurements y' of them from its channel, and samples x''
of p(x | y') from its sampler: x' must look like one of them. It takes no ground truth. Writes
calibration_001.json (or the next number) and a figure into the run directory, and never over
anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffem.cli.arguments import parse_calibrate
from diffem.cli.errors import report_user_errors
from diffem.cli.evaluate import build_finished_data, compose_finished
from diffem.cli.launch import quiet
from diffem.config.build import build
from diffem.corruption import Measurement
from diffem.data.measurements import MeasurementSet
from diffem.metric import Calibration
from diffem.metric import calibrate as calibration_of
from diffem.metric.energy import EnergyTest, energy_test
from diffem.posterior import sample_chunks
from diffem.posterior.posterior import chunk_count
from diffem.report.calibration import BLIND_SPOTS, print_calibration, save_calibration, verdict
from diffem.report.summary import free_number
from diffem.result import Result, load, read_weights
from diffem.result.result import POSTERIOR, weights_folder
from diffem.runtime.errors import UserError
from diffem.runtime.progress import plain_console, progress_bar, say
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator
from diffem.storage.atomic import write_file
from diffem.storage.entries import check_entries
from diffem.storage.strict_json import to_json

KEY = "calibration"  # of all draws


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrates a run, prints what was found and writes it into the run directory.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_calibrate(arguments)
    with report_user_errors(), quiet():
        check("--n@calibrate", chosen.n)
        check("--measurements", chosen.measurements)
        check_entries(chosen.run, writing=True)
        result = load(chosen.run, device=chosen.device, trust=chosen.trust)
        if not chosen.run.is_dir():
            raise UserError(f"{chosen.run} is no run directory; give one, which holds the prior")
        calibrate_run(result, chosen.n, chosen.measurements, seed=chosen.seed)


def calibrate(
    run: Result | str | Path, *, n: int = 32, measurements: int = 256, seed: int | None = None
) -> Calibration:
    """Returns how well a finished run's sampler is calibrated for images of its own prior.

    It judges the sampler, not the prior: a wrong prior with its own exact posterior passes.

    Arguments:
        run: The result, as `diffem.load` returns it, or the run directory.
        n: The number of samples of each measurement, at least 2.
        measurements: The number of images that are drawn from the prior and measured.
        seed: The seed; None for the run's.

    Raises:
        UserError: If the run has no prior, or is not finished.
    """
    result = run if isinstance(run, Result) else load(run)
    return Simulation.of(
        result, check("--n@calibrate", n), check("--measurements", measurements), seed=seed
    ).calibration


@dataclass(frozen=True)
class Simulation:
    """Images of a run's prior, measured by its channel and reconstructed by its sampler."""

    measured: Tensor
    """The measurements y' of images of the prior, brought on the grid of x, (B, *shape)."""
    calibration: Calibration
    """How well the sampler is calibrated for them."""

    @classmethod
    def of(cls, result: Result, n: int, count: int, *, seed: int | None) -> "Simulation":
        """Draws and calibrates.

        Arguments:
            result: The result.
            n: The number of samples of each measurement.
            count: The number B of measurements.
            seed: The seed; None for the run's.

        Raises:
            UserError: If there is no prior.
        """
        prior, sampling = result.prior, result.posterior.sampling
        if prior is None:
            raise UserError(
                f"{result.path} has no prior to draw images from, as it was trained with "
                "prior=null; train one with it"
            )
        key = (sampling.chosen(seed), KEY)
        size = sampling.chunk_size
        x = []
        with progress_bar("images of the prior", chunk_count(count, size), "chunks") as advance:
            for start in range(0, count, size):
                x.append(prior.draw(min(size, count - start), KEY, start, seed=seed))
                advance()
        clean = torch.cat(x)
        measurement = result.channel.draw(clean, generator(*key, "measurements"))
        measurement = result.channel.assume(measurement)
        lifted = result.channel.lift(measurement)
        samples = draw_samples(result, measurement, n, seed=seed)
        return cls(lifted, calibration_of(clean, samples, lifted, generator(*key, "ranks")))


def draw_samples(result: Result, measurement: Measurement, n: int, *, seed: int | None) -> Tensor:
    """Returns samples of the posteriors of measurements, (n, B, *shape), on the scale [-1, 1].

    Arguments:
        result: The result.
        measurement: The measurements, on that scale.
        n: The number of samples of each.
        seed: The seed; None for the run's.
    """
    sampling, measurements = (
        result.posterior.sampling, MeasurementSet(measurement, result.channel)
    )  # fmt: skip
    chunks = sample_chunks(
        result.posterior.posterior, measurements, n,
        chunk_size=sampling.chunk_size,
        key=(sampling.chosen(seed), KEY, "samples"),
        device=sampling.device,
    )  # fmt: skip
    found = []
    total = chunk_count(len(measurements), sampling.chunk_size)
    with progress_bar("samples", total, "chunks") as advance:
        for _ in range(total):
            with torch.no_grad(), sampling.context():
                found.append(next(chunks))
            advance()
    return torch.cat(found, dim=1)


def calibrate_run(result: Result, n: int, count: int, *, seed: int | None) -> None:
    """Calibrates a run, also by its held-out measurements, and writes what was found.

    Arguments:
        result: The result, of a run directory.
        n: The number of samples of each measurement.
        count: The number of measurements.
        seed: The seed; None for the run's.

    Raises:
        UserError: If there is no prior, or the figure cannot be written.
    """
    run_dir = result.path
    with free_number(run_dir, "calibration") as name:
        simulation = Simulation.of(result, n, count, seed=seed)
        truth, test = None, None
        heldout = heldout_measurements(result)
        if heldout is not None:
            first = heldout.select(slice(min(count, len(heldout))))
            lifted = result.channel.lift(first)
            key = (result.posterior.sampling.chosen(seed), KEY)
            if (pairs := min(len(lifted), len(simulation.measured))) >= 2:
                test = energy_test(
                    lifted[:pairs], simulation.measured[:pairs], generator(*key, "swaps")
                )
            if heldout.truth is not None:
                samples = draw_samples(result, first, n, seed=seed)
                truth = calibration_of(
                    heldout.truth[: len(first.y)], samples, lifted, generator(*key, "truth")
                )
        own = simulation.calibration
        says = verdict(own, test, truth)
        figure = run_dir / "figures" / f"{name}.png"
        figure.parent.mkdir(exist_ok=True)
        save_calibration(figure, own, truth)
        content = {
            "seed": result.posterior.sampling.chosen(seed),
            "simulated": own.to_plain(),
            "truth": None if truth is None else truth.to_plain(),
            "measurement_test": None if test is None else plain(test),
            "verdict": says,
            "blind_spots": list(BLIND_SPOTS),
        }
        text = to_json(content, indent=1) + "\n"
        write_file(run_dir / f"{name}.json", lambda file: file.write(text.encode()))
    print_calibration(own, truth, says)
    for file in (run_dir / f"{name}.json", figure):
        plain_console().print(f"wrote {file}", soft_wrap=True)


def plain(test: EnergyTest) -> dict[str, Any]:
    """Returns a test of measurements in plain types."""
    return {"distance": test.distance, "error": test.error, "p": test.p, "pairs": len(test.parts)}


def heldout_measurements(result: Result) -> MeasurementSet | None:
    """Returns a run's held-out measurements; None, with a line, if they cannot be read any more.

    Arguments:
        result: The result, of a run directory.
    """
    try:
        weights = read_weights(weights_folder(result.path) / POSTERIOR)
        cfg = compose_finished(result.path, weights)
        _, heldout = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
    except UserError as error:
        say(f"the run's measurements are left out: {error}")
        return None
    return heldout.under(result.channel)
