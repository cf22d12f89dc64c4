"""Says what can be learnt from measurements, before a run: `diffem inspect PATH [OVERRIDE …]`.

    diffem inspect crops
    diffem inspect crops.npy corruption=blur corruption.sigma=1.5 --out look

Reads the data and the configuration: what is in the files, how large the noise is and whether the
stated one fits, what no measurement measures, and what a round costs on this machine. It prints a
command that trains; with --out it writes the settings and a page of figures into a new folder.
"""

import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from diffem.cli.arguments import parse_inspect
from diffem.cli.compose import check_channel_given, check_config, compose_run
from diffem.cli.composition import CONF, is_hydra_choice, override_key
from diffem.cli.cost import RunCost, measure_cost
from diffem.cli.data import build_data
from diffem.cli.errors import report_user_errors
from diffem.cli.launch import quiet
from diffem.config.build import build, locate
from diffem.config.paths import path_override, quote_paths, unquoted
from diffem.corruption import LinearChannel
from diffem.data.files import MeasurementFiles
from diffem.data.format import new_folder, writing
from diffem.inspection.camera import Camera
from diffem.inspection.coverage import Coverage, take_coverage
from diffem.inspection.noise import NoiseEstimate, estimate_noise
from diffem.inspection.report import (
    Findings,
    coverage_findings,
    data_findings,
    noise_findings,
    stated_findings,
)
from diffem.inspection.speckle import Speckle
from diffem.inspection.survey import DataSurvey, survey_data
from diffem.result import build_channel
from diffem.runtime.errors import UserError
from diffem.storage.atomic import free_bytes

OWN = ("dataset", "dataset.path", "resume")  # settings that the command gives itself
LEVELS = ("std", "photons")  # of a noise: the first that is stated is compared
WIDTH = 100
QUANTILE = 0.9995  # of the values: the bright end of the range of a camera
FILE, PAGE = "inspect.yaml", "inspect.png"


@dataclass(frozen=True)
class Inspection:
    """All that was found, and the settings of a run."""

    survey: DataSurvey
    noise: NoiseEstimate
    coverage: Coverage | None
    cost: RunCost
    overrides: list[str]
    """The settings of `diffem train`."""
    findings: dict[str, Findings]
    """By the title of their part."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspects measurements and prints what was found.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_inspect(arguments)
    with report_user_errors(), quiet():
        if chosen.out is None:
            print(report(inspect(chosen.path, chosen.overrides)))
            return
        with new_folder(chosen.out) as folder:
            found = inspect(chosen.path, chosen.overrides)
            with writing(chosen.out):
                write(folder, found)
        print(f"{report(found)}\n\nwrote {chosen.out}: {FILE} (the settings), {PAGE} (figures)")


def inspect(path: Path, overrides: Sequence[str]) -> Inspection:
    """Returns what was found in measurements under the settings of a run.

    What the settings leave out is chosen: the corruption (a mask where values are missing, noise
    alone elsewhere), the noise (as estimated), the range.

    Arguments:
        path: The file or folder of the measurements.
        overrides: Settings as for `diffem train`.

    Raises:
        UserError: If they cannot be read, or the settings are refused.
    """
    keys = {override_key(override) for override in overrides}
    if own := [key for key in OWN if key in keys]:
        raise UserError(f"{own[0]} is not for inspect, which gives it by PATH; leave it out")
    run_dir = next((o for o in overrides if o.startswith("run_dir=")), None)
    run_dir = path_override("run_dir", f"runs/{path.stem}") if run_dir is None else run_dir
    directory = Path(unquoted(run_dir.partition("=")[2]))
    base = ["dataset=measurements", path_override("dataset.path", path)]
    given = [o for o in quote_paths(overrides) if not o.startswith("run_dir=")]
    any_corruption = [] if "corruption" in keys else ["corruption=denoising"]
    cfg = compose_run([*base, *any_corruption, *given], directory)
    source: MeasurementFiles = build(cfg.dataset, "dataset")
    read = cfg.dataset
    channel = build_channel(cfg.corruption, source.shape)
    own = channel.forward_operator if isinstance(channel, LinearChannel) else channel
    survey = survey_data(source.held, channel, limit=source.count)
    findings = {
        "Data": data_findings(survey, source.format.suffix, source.shape, crops=own.keeps_units)
    }
    if any_corruption:
        base.append(f"corruption={'mask' if survey.missing else 'denoising'}")
        why = "values are missing" if survey.missing else "none was given: noise alone"
        findings["Data"].lines.append(f"{base[-1]} is assumed, since {why}")
    if len(source.shape) == 1 and "network" not in keys:
        base.append("network=mlp")
    axes = min(len(source.shape) - 1, len(survey.shape))
    # In other units than those of an image, neighbours are no neighbouring places of it.
    noise = estimate_noise(survey.sample, axes=axes, clipped=survey.limits, alike=own.keeps_units)
    findings["Noise"] = noise_findings(noise)
    cfg = compose_run([*base, *given], directory)
    stated = any(key.startswith(("corruption.noise", "corruption/noise")) for key in keys)
    if not stated and (chosen := chosen_noise(noise, survey, cfg, ranged="dataset.range" in keys)):
        base += chosen
        if not noise.alike:
            findings["Noise"].warnings.append(
                "the noise is at most that, and may be far less: take it from repeated "
                "measurements, or from some of nothing, and give corruption.noise.std"
            )
        cfg = compose_run([*base, *given], directory)
    check_config(cfg)
    check_channel_given(cfg)
    if cfg.dataset != read:  # reading takes long
        source = build(cfg.dataset, "dataset")
    train, heldout = build_data(cfg, source)
    key = next(
        (f"corruption.noise.{k}" for k in LEVELS if k in cfg.corruption.get("noise", {})), ""
    )
    if stated and isinstance(train.channel, LinearChannel) and key:
        of_stated = stated_findings(noise, train.channel, train.scale, key=key)
        findings["Noise"].warnings += of_stated.warnings
        findings["Noise"].lines += of_stated.lines
    if doubt := train.doubt():
        findings["Data"].warnings.append(doubt)
    coverage = take_coverage(train)
    findings["What can be learnt"] = coverage_findings(coverage)
    cost = measure_cost(cfg, train, heldout)
    findings["Cost"] = cost_findings(cost, directory)
    if "dataset.range" not in {override_key(o) for o in (*base, *given)}:
        low, high = train.scale.low, train.scale.high
        base.append(f"dataset.range=[{low:.6g},{high:.6g}]")
    choices_first = sorted([*base, *given, run_dir], key=lambda o: "." in o.partition("=")[0])
    return Inspection(survey, noise, coverage, cost, choices_first, findings)


def chosen_noise(
    noise: NoiseEstimate, survey: DataSurvey, cfg: DictConfig, *, ranged: bool
) -> list[str]:
    """Returns the settings of the noise that the measurements have.

    Arguments:
        noise: The estimate.
        survey: What is in the measurements.
        cfg: The configuration so far.
        ranged: Whether `dataset.range` was given.

    Raises:
        UserError: If the noise could not be estimated.
    """
    if "noise" not in cfg.corruption:
        return []  # a channel of another package has its own
    if noise.std is None:
        raise UserError(
            f"corruption.noise.std must be given, since {noise.why_not}: corruption.noise.std="
            "VALUE, in the units of the data"
        )
    preserves = getattr(_operator_class(cfg), "preserves_intensity", False)
    low, high = (cfg.dataset.range if ranged else (None, None)) or (None, None)
    if noise.speckle is not None and preserves:
        return _speckle_settings(noise.speckle, survey, low, high)
    if noise.camera is not None and preserves:
        return _camera_settings(noise.camera, survey, low, high)
    return [f"corruption.noise.std={noise.std.value:.4g}"]


def _operator_class(cfg: DictConfig) -> type:
    """Returns the class of `corruption`, which says whether photon noise may follow it."""
    return locate(str(cfg.corruption._target_), "corruption._target_")


def _camera_settings(
    camera: Camera, survey: DataSurvey, low: float | None, high: float | None
) -> list[str]:
    """Returns the settings of photon noise with a camera's variance at every brightness.

    Where offset and read-out noise are not known, the mean and the noise of the darkest patches
    stand for them: the variance is the same line.
    """
    gain = camera.gain.value
    dark, std = camera.darkest
    if camera.offset is not None and camera.read is not None:
        dark, std = camera.offset.value, camera.read.value
    low, high, settings = _range_above(dark, survey, low, high)
    variance = max(0.0, std**2 + gain * (low - dark))  # at the low end
    counts = variance / gain**2
    settings.append(f"corruption.noise.photons={(high - low) / gain:.4g}")
    if counts < 0.3:  # what a read-out adds to it is less than a count
        return [
            "corruption/noise=poisson",
            *settings,
            f"corruption.noise.background={max(counts, 1e-3):.3g}",
        ]
    background = float(f"{min(1.0, 0.1 * counts):.3g}")
    read = math.sqrt(variance - gain**2 * background)
    return [
        "corruption/noise=poisson_gaussian",
        *settings,
        f"corruption.noise.background={background:.3g}",
        f"corruption.noise.std={read:.4g}",
    ]


def _speckle_settings(
    speckle: Speckle, survey: DataSurvey, low: float | None, high: float | None
) -> list[str]:
    """Returns the settings of speckle, with its variance at the low end of the range."""
    dark, level = speckle.offset.value, speckle.level.value
    low, high, settings = _range_above(dark, survey, low, high)
    # Some white noise keeps the variance of a dark pixel above 0.
    std = max(math.hypot(speckle.std, level * (low - dark)), 1e-3 * level * (high - low))
    return [
        "corruption/noise=speckle",
        *settings,
        f"corruption.noise.speckle={level:.4g}",
        f"corruption.noise.std={std:.4g}",
    ]


def _range_above(
    dark: float, survey: DataSurvey, low: float | None, high: float | None
) -> tuple[float, float, list[str]]:
    """Returns the range of the values of a clean image, and its setting if none was given."""
    if low is not None and high is not None:
        return low, high, []
    values = survey.sample[np.isfinite(survey.sample)]
    low, high = float(f"{dark:.6g}"), float(f"{np.quantile(values, QUANTILE):.6g}")
    return low, high, [f"dataset.range=[{low:.6g},{high:.6g}]"]


def cost_findings(cost: RunCost, run_dir: Path) -> Findings:
    """Returns what a run costs, in sentences.

    Arguments:
        cost: The cost.
        run_dir: Where the run would write.
    """
    found = Findings()
    found.lines.append(
        f"about {_time(cost.round)} a round on {cost.device}: {_time(cost.m_step)} of M-step, "
        f"{_time(cost.e_step)} of E-step, {_time(cost.evaluation)} of evaluation"
    )
    if cost.relax > 1 and cost.rounds > 1:
        found.lines.append(
            f"while samples spread too much, E-steps but the last take up to {cost.relax} "
            "times as long, which is not counted here"
        )
    found.lines.append(
        f"about {_time(cost.total)} in all: {cost.rounds} rounds, "
        + (f"{_time(cost.prior)} for the prior and " if cost.prior else "and ")
        + f"{_time(cost.last)} for the last evaluation; round 0 comes on top"
    )
    if cost.scaled:
        found.lines.append("timed on fewer images than a batch or a chunk has, and scaled")
    found.lines.append(f"{_bytes(cost.disk)} of disk, at least {_bytes(cost.memory)} of memory")
    folder = run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if cost.disk > (free := free_bytes(folder)):
        found.warnings.append(
            f"the run needs {_bytes(cost.disk)} of disk, and {_bytes(free)} are free in {folder}; "
            "set em.keep_rounds=2, or choose a run_dir on another disk"
        )
    if cost.total > 86400:
        found.warnings.append(
            f"the run would take {_time(cost.total)} on {cost.device}; use a GPU, a smaller "
            "network, or fewer em.steps_per_round and em.rounds"
        )
    return found


def _time(seconds: float) -> str:
    """Returns a time to two digits."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{_two_digits(seconds / unit)} {name}"
    return f"{_two_digits(seconds)} s"


def _bytes(count: float) -> str:
    """Returns a size to two digits."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{_two_digits(count / unit)} {name}"
    return f"{_two_digits(count / 1e3)} kB"


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def command(overrides: Sequence[str]) -> str:
    """Returns `diffem train` with settings, as a shell takes it, in lines."""
    lines = ["diffem train"]
    for word in map(shlex.quote, overrides):
        if len(lines[-1]) + len(word) > WIDTH - 10:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def report(found: Inspection) -> str:
    """Returns the text of an inspection: warnings, what was found, the command."""
    parts = []
    if warnings := [w for each in found.findings.values() for w in each.warnings]:
        parts.append("\n".join(_wrapped(f"warning: {w}", "", "    ") for w in warnings))
    for title, each in found.findings.items():
        if each.lines:
            parts.append(
                "\n".join([title, *(_wrapped(line, "  ", "    ") for line in each.lines)])
            )
    shown = textwrap.indent(command(found.overrides), "  ")
    parts.append(f"Train\n{shown}")
    return "\n\n".join(parts)


def _wrapped(text: str, first: str, rest: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def write(folder: Path, found: Inspection) -> None:
    """Writes the settings, in the form of conf/experiment, and the page of figures.

    Arguments:
        folder: The folder.
        found: The inspection.
    """
    from diffem.inspection.page import save_page  # imports matplotlib

    choices, values = [], OmegaConf.create()
    for override in found.overrides:
        key, value = override_key(override), override.partition("=")[2]
        if (CONF / key).is_dir() or is_hydra_choice(override):
            choices.append({f"override /{key}": value})
        else:
            parsed = OverridesParser.create().parse_override(f"{key}={value}")
            OmegaConf.update(values, key, parsed.value())
    comment = "\n".join(f"# {line}" for line in command(found.overrides).splitlines())
    text = OmegaConf.to_yaml(OmegaConf.create({"defaults": choices})) + OmegaConf.to_yaml(values)
    (folder / FILE).write_text(f"# @package _global_\n{comment}\n{text}", encoding="utf-8")
    save_page(folder / PAGE, found.survey.name, found.survey, found.noise, found.coverage)
