"""Says how far to trust a finished run's samples: `diffem calibrate RUN`, `diffem.calibrate(run)`.

    diffem calibrate runs/mine
    diffem calibrate runs/mine --n 64 --measurements 512

Images x' are drawn from the run's prior, measurements y' of them from its channel, and samples x''
of p(x | y') from its sampler: x' must look like one of them. It takes no ground truth. Writes
calibration_001.json (or the next number) and a figure into the run directory, and never over
anything.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from diffem.cli.arguments import parse_calibrate
from diffem.cli.errors import report_user_errors
from diffem.cli.evaluate import build_finished_data, compose_finished
from diffem.cli.identity import run_identity
from diffem.cli.launch import quiet
from diffem.cli.parts import build_loggers
from diffem.config.build import build
from diffem.data.measurements import MeasurementSet
from diffem.logging.calibration import log_calibration
from diffem.logging.rounds import close
from diffem.metric import Calibration, energy_test
from diffem.metric import calibrate as calibration_of
from diffem.report.calibration import BLIND_SPOTS, findings, print_calibration, save_calibration
from diffem.result import Result, load, read_weights
from diffem.result.result import POSTERIOR, weights_folder
from diffem.result.simulation import KEY, Simulation, draw_samples
from diffem.runtime.errors import UserError, usable
from diffem.runtime.progress import plain_console, say
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator
from diffem.storage.atomic import write_text
from diffem.storage.entries import COPY, check_entries, check_writable
from diffem.storage.figure import figures_of
from diffem.storage.identity import check_data
from diffem.storage.numbered import free_number
from diffem.storage.strict_json import to_json

ADDED_TO = ("wandb", "tensorboard")
"""The loggers of a run that its calibrations are added to."""


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
        check_writable(chosen.run, COPY)
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
    simulation = Simulation.of(
        result, check("--n@calibrate", n), check("--measurements", measurements), seed=seed
    )
    return calibration_of_simulation(result, simulation, seed=seed)


def calibration_of_simulation(
    result: Result, simulation: Simulation, *, seed: int | None
) -> Calibration:
    """Returns how well a run's sampler is calibrated for the images of a simulation."""
    key = (result.posterior.sampling.chosen(seed), KEY, "ranks")
    return calibration_of(simulation.x, simulation.samples, simulation.lifted, generator(*key))


def calibrate_run(result: Result, n: int, count: int, *, seed: int | None) -> None:
    """Calibrates a run, also by its held-out measurements, and writes what was found.

    Arguments:
        result: The result, of a run directory.
        n: The number of samples of each measurement.
        count: The number of measurements.
        seed: The seed; None for the run's.

    Raises:
        UserError: If there is no prior, or a file cannot be written.
    """
    run_dir = result.path
    figures = run_dir / "figures"
    with usable("run", figures):  # now, and not after minutes
        figures.mkdir(exist_ok=True)
    with free_number(run_dir, "calibration") as name:
        simulation = Simulation.of(result, n, count, seed=seed)
        own = calibration_of_simulation(result, simulation, seed=seed)
        simulated = simulation.lifted
        del simulation  # its samples, before there are those of the held-out measurements
        truth, test = None, None
        heldout = heldout_measurements(result)
        if heldout is not None:
            first = heldout.select(slice(min(count, len(heldout))))
            lifted = result.channel.lift(first)
            key = (result.posterior.sampling.chosen(seed), KEY)
            if (pairs := min(len(lifted), len(simulated))) >= 2:
                test = energy_test(lifted[:pairs], simulated[:pairs], generator(*key, "swaps"))
            if heldout.truth is not None:
                samples = draw_samples(result, first, n, seed=seed)
                truth = calibration_of(
                    heldout.truth[: len(first.y)], samples, lifted, generator(*key, "truth")
                )
        says = findings(own, test, truth)
        content = {
            "seed": result.posterior.sampling.chosen(seed),
            "round": result.round,
            "simulated": own.to_plain(),
            "truth": None if truth is None else truth.to_plain(),
            "measurement_test": None if test is None else test.to_plain(),
            "verdict": says,
            "blind_spots": list(BLIND_SPOTS),
        }
        text = to_json(content, indent=1) + "\n"
        try:
            write_text(run_dir / f"{name}.json", text)
        finally:
            print_calibration(own, truth, says)
    plain_console().print(f"wrote {run_dir / name}.json", soft_wrap=True)
    figure = figures / f"{name}.png"
    with figures_of(run_dir / f"{name}.json"):
        save_calibration(figure, own, truth)
    plain_console().print(f"wrote {figure}", soft_wrap=True)
    show_in_loggers(run_dir)


def show_in_loggers(run_dir: Path) -> None:
    """Adds a run's newest calibration to what the run logged to W&B and TensorBoard.

    A failure is a line, and nothing else: the calibration is in its files.

    Arguments:
        run_dir: The run directory. Nothing is added of a logger that wrote nothing there.
    """
    if not any(run_dir.glob("wandb/offline-run-*")) and not (run_dir / "tensorboard").is_dir():
        return
    try:
        cfg = compose_finished(run_dir, read_weights(weights_folder(run_dir) / POSTERIOR))
        kept = {name: cfg.logger[name] for name in ADDED_TO if name in cfg.logger}
        if "wandb" in kept:
            kept["wandb"].artifacts = False  # the run's own process has sent them
        cfg.logger = kept
        loggers = build_loggers(cfg)
        log_calibration(loggers, run_dir)
        close(loggers)
    except UserError as error:
        say(f"the calibration is not added to what the run logged: {error}")


def heldout_measurements(result: Result) -> MeasurementSet | None:
    """Returns a run's held-out measurements; None, with a line, if they cannot be read any more.

    Arguments:
        result: The result, of a run directory.
    """
    try:
        weights = read_weights(weights_folder(result.path) / POSTERIOR)
        cfg = compose_finished(result.path, weights)
        train, heldout = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
        check_own_data(result.path, cfg, train, heldout)
    except UserError as error:
        say(f"the run's measurements are left out: {error}")
        return None
    return heldout.under(result.channel)


def check_own_data(
    run_dir: Path, cfg: DictConfig, train: MeasurementSet, heldout: MeasurementSet
) -> None:
    """Refuses measurements that are not those which a run was trained on.

    Arguments:
        run_dir: The run directory, which is bound to the hash of its measurements.
        cfg: The run's configuration.
        train: The training measurements.
        heldout: The held-out measurements.

    Raises:
        UserError: If they have another hash.
    """
    m_step = build(cfg.m_step, "m_step")
    if m_step.clean is not None:
        m_step.clean.load(train)
    check_data(run_dir, run_identity(cfg, m_step, train, heldout).data_sha256)
