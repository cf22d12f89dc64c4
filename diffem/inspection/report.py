"""What was found in measurements, in sentences: first what is wrong, then what is so."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from diffem.corruption import LinearChannel
from diffem.data.measurements import MeasurementSet
from diffem.data.scale import Scale
from diffem.inspection.coverage import Coverage, take_coverage
from diffem.inspection.curve import fit_curve
from diffem.inspection.noise import NoiseEstimate, NoiseLaw
from diffem.inspection.survey import DataSurvey

NAMED = 5  # pixels that a sentence names
OFF = 1.25  # times the stated noise: more is said to be wrong
CERTAIN = 4.0  # standard errors by which it must differ
FEW = 100  # measurements
LARGE = 64  # pixels of a side
LOOKED_AT = 2**22  # entries of the images that `unmeasured` looks at, about
LEAST = 64  # their number, at least
HELP = (
    "more rounds will not help there, what a reconstruction shows is a guess; measurements under "
    "another operator would, or a few clean images, or a symmetry of the images that the operator "
    "does not have"
)


@dataclass
class Findings:
    """What is wrong, and what is so, each a sentence."""

    warnings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def data_findings(
    survey: DataSurvey, file_type: str, shape: Sequence[int], *, crops: bool
) -> Findings:
    """Returns what a file or a folder holds.

    Arguments:
        survey: What was found.
        file_type: The suffix of its files.
        shape: The shape of a clean image, (C, *S) or (D,).
        crops: Whether measurements can be cut, as images can.
    """
    found = Findings()
    size = " × ".join(map(str, survey.shape))
    found.lines.append(
        f"{survey.count} measurements of {size} {survey.dtype} values ({file_type}), from "
        f"{survey.low:.6g} to {survey.high:.6g}"
    )
    if survey.missing:
        found.lines.append(f"{percent(survey.missing)} of the values are missing")
    for limit, end, why in (
        (survey.clipped_high, "largest", ""),
        (survey.clipped_low, "smallest", ", or sees nothing"),
    ):
        if limit is not None:
            found.warnings.append(
                f"{percent(limit.fraction)} of the values are the {end} one, {limit.value:.6g}: "
                f"the detector clips there{why}; no linear channel describes what is clipped: "
                "mark it by NaN (corruption=mask) if it is little, or use a channel that clips"
            )
    if len(survey.dead):
        named, number = _places(survey.dead)
        one = number == 1
        found.warnings.append(
            f"{f'pixel {named} has' if one else f'{number} pixels have'} the same value in all "
            f"measurements{'' if one else f' ({named})'}, as where a detector is dead or a border "
            f"was filled: mark {'it' if one else 'them'} by NaN (corruption=mask), or the value "
            "counts as an exact measurement, and for the range"
        )
    for number, what in ((survey.empty, "hold nothing that was measured"),
                         (survey.constant, "have the same value everywhere")):  # fmt: skip
        if number:
            found.warnings.append(
                f"{number} of {survey.count} measurements {what}; leave them out"
            )
    cut = "cut large images into crops, or "
    if survey.count < FEW:
        found.warnings.append(
            f"{survey.count} measurements are few to learn from; {cut if crops else ''}give more"
        )
    if len(shape) > 1 and max(shape[-2:]) > LARGE:
        found.warnings.append(
            f"images of {' × '.join(map(str, shape))} are large for the default network, which is "
            f"made for 8 × 8 to about 32 × 32; {cut if crops else ''}choose a larger network"
        )
    return found


def noise_findings(noise: NoiseEstimate) -> Findings:
    """Returns what the measurements tell of their noise, in the data's units."""
    found = Findings()
    if noise.std is None:
        found.lines.append(f"the noise cannot be told from these measurements: {noise.why_not}")
        return found
    where = "differences of repeated exposures" if noise.repeated else "flat patches"
    where = where if noise.alike else "differences of neighbouring values"
    if noise.law in (NoiseLaw.CONSTANT, NoiseLaw.UNKNOWN):
        most = "at most " if noise.at_most else ""
        found.lines.append(f"its standard deviation is {most}{noise.std}, from {where}")
        if not noise.alike:
            found.lines.append(
                "neighbouring values of such measurements show other things: what was measured is "
                "part of their differences, and how much cannot be told"
            )
            return found
        if noise.at_most:
            found.warnings.append(
                f"the noise is at most {noise.std.value:.4g}: no patch is flat enough to tell it "
                "from structures; take it from a flat region or from repeated exposures, and give "
                "corruption.noise.std"
            )
    if noise.law is NoiseLaw.CONSTANT:
        found.lines.append(
            "it does not depend on the brightness: Gaussian noise of one level fits "
            "(corruption/noise=gaussian)"
        )
    elif noise.law is NoiseLaw.UNKNOWN:
        found.lines.append(
            "whether it depends on the brightness cannot be told: flat patches hardly differ in it"
        )
    elif noise.law is NoiseLaw.LINEAR:
        found.lines.extend(_camera_lines(noise))
    elif noise.speckle is not None:
        low, high = _ends(noise)
        found.lines.append(
            f"it {noise.law.value}, from {low:.3g} in the dark to {high:.3g} in the bright: one "
            "level does not fit (corruption/noise=speckle)"
        )
        found.lines.append(f"level relative to the intensity: {noise.speckle.level}")
        found.lines.append(f"offset, the mean value without light: {noise.speckle.offset}")
        found.lines.append(f"white noise besides: {noise.speckle.std:.3g} units")
    else:
        low, high = _ends(noise)
        found.warnings.append(
            f"the noise {noise.law.value}: its standard deviation is "
            f"{low:.3g} in the dark and {high:.3g} in the bright, so that one level does not fit; "
            "the values may have been compressed (a gamma curve, a square root): undo it"
        )
    return found


def _ends(noise: NoiseEstimate) -> tuple[float, float]:
    """Returns the noise's standard deviation in the darkest and in the brightest patches."""
    assert noise.curve is not None
    low, high = np.sqrt(noise.curve.variance[[0, -1]])
    return float(low), float(high)


def _camera_lines(noise: NoiseEstimate) -> Iterator[str]:
    """Yields what is known of a camera that counts photons."""
    low, high = _ends(noise)
    yield (
        f"it grows with the brightness, from {low:.3g} in the dark to {high:.3g} in the bright, "
        "as that of counted photons: one level does not fit"
    )
    camera = noise.camera
    if camera is None:
        return
    gain = camera.gain
    yield (f"gain: {gain} units of the data a photon ({1 / gain.value:.3g} photons a unit)")
    if camera.offset is None or camera.read is None:
        mean, std = camera.darkest
        yield (
            f"offset and read-out noise cannot be told apart: {camera.why_not}; the noise of the "
            f"darkest patches is {std:.3g} at the mean {mean:.5g}, that of the read-out no more"
        )
        return
    yield f"offset, the mean value without light: {camera.offset}"
    photons = camera.read.value / gain.value
    yield (
        f"read-out noise: {camera.read} units, {photons:.2g} photons (if the darkest level is "
        "that without light)"
    )


def stated_findings(
    noise: NoiseEstimate, channel: LinearChannel, scale: Scale, *, key: str
) -> Findings:
    """Returns whether the stated noise is that of the measurements.

    Arguments:
        noise: The estimate, in the data's units.
        channel: The channel as it is stated, on the scale of [-1, 1].
        scale: The data's units.
        key: The key of the stated level.
    """
    found = Findings()
    if noise.std is None or noise.curve is None:
        return found
    levels = [p.known for p in channel.noise.parameters.values()]
    if None in levels:
        found.lines.append(f"{key} is a range, or differs between measurements: not compared")
        return found
    ratio, error = stated_ratio(noise, channel, scale)
    # An upper bound is below the stated noise if it is so at every brightness.
    middle, change = float((np.max if noise.at_most else np.median)(ratio)), ratio[-1] / ratio[0]
    certain = abs(math.log(middle)) > CERTAIN * error
    stated = _stated_level(channel, scale, key)
    if max(change, 1 / change) > OFF**2 and noise.law is not NoiseLaw.UNKNOWN:
        found.warnings.append(
            f"the stated {key}={stated} does not fit at every brightness: the measurements have "
            f"{ratio[0]:.2g} times its standard deviation in the dark and {ratio[-1]:.2g} times "
            "in the bright"
        )
    elif middle < 1 / OFF and certain:
        most = "at most " if noise.at_most else ""
        found.warnings.append(
            f"the stated noise is too large: {key}={stated}, and the measurements have "
            f"{most}{middle:.2g} times its standard deviation"
        )
    elif middle > OFF and certain and not noise.at_most:
        found.warnings.append(
            f"the stated noise is too small: {key}={stated}, and the measurements have "
            f"{middle:.2g} times its standard deviation; what is noise would be taken for "
            "structure"
        )
    elif middle > OFF or noise.at_most:
        found.lines.append(
            f"the stated {key}={stated} may be right: the measurements have at most {middle:.2g} "
            "times its standard deviation"
        )
    else:
        found.lines.append(f"the stated {key}={stated} fits")
    return found


def stated_ratio(
    noise: NoiseEstimate, channel: LinearChannel, scale: Scale
) -> tuple[np.ndarray, float]:
    """Returns the estimated over the stated standard deviation by brightness, and its error.

    Arguments:
        noise: An estimate with a curve.
        channel: The channel on the scale of [-1, 1], whose noise has one level for all.
        scale: The data's units.
    """
    assert noise.curve is not None and noise.std is not None
    mean = scale.normalise(torch.from_numpy(noise.curve.mean))[None]
    model = channel.noise
    level = torch.tensor([[p.known for p in model.parameters.values()]], dtype=torch.float64)
    variance = model.variance(mean, level).expand_as(mean)[0].numpy() / scale.factor**2
    measured = noise.curve.variance
    if noise.law in (NoiseLaw.CONSTANT, NoiseLaw.UNKNOWN):
        measured = np.full_like(measured, noise.std.value**2)
    elif noise.law is NoiseLaw.LINEAR:
        measured = fit_curve(noise.curve, 1)(noise.curve.mean)
    measured = np.maximum(measured, 1e-3 * measured.max())
    error = max(noise.std.error / noise.std.value, 0.01)
    return np.sqrt(measured / variance), error


def _stated_level(channel: LinearChannel, scale: Scale, key: str) -> str:
    """Returns the stated number of a key, in the data's units."""
    name = key.rpartition(".")[2]
    known = channel.noise.parameters[name].known
    assert known is not None
    return f"{known / scale.factor if name == 'std' else known:.4g}"


def coverage_findings(coverage: Coverage | None) -> Findings:
    """Returns which pixels and frequencies the measurements do not measure."""
    found = Findings()
    if coverage is None:
        found.lines.append(
            "the channel is not linear: which directions of an image it measures is not known"
        )
        return found
    gone = [
        (_places(coverage.never), "never measured"),
        (_places(coverage.hardly), "hardly ever measured"),
    ]
    what = "entry" if coverage.frequencies is None else "pixel"
    for (named, count), how in gone:
        if count:
            many = "entries" if what == "entry" else "pixels"
            subject = f"{what} {named} is" if count == 1 else f"{count} {many} are"
            listed = "" if count == 1 else f" ({named})"
            found.warnings.append(f"{subject} {how}{listed}: {HELP}")
    if coverage.directions is not None and len(coverage.directions) and not len(coverage.never):
        shown = ", ".join(f"{entry:.2g}" for entry in coverage.directions[0][:8])
        found.warnings.append(
            f"{len(coverage.directions)} of {len(coverage.pixels)} directions are hardly or never "
            f"measured, such as ({shown}{', …' if len(coverage.pixels) > 8 else ''}): {HELP}"
        )
    if (frequencies := coverage.frequencies) is not None and frequencies.removed.any():
        cutoff, fraction = frequencies.cutoff, float(frequencies.removed.mean())
        which = (
            f"frequencies above {cutoff:.2f} cycles/pixel"
            if cutoff is not None
            else f"{percent(fraction)} of the frequencies"
        )
        found.warnings.append(
            f"{which} are removed by all measurements (less than 1 % of their power is left; 0.5 "
            f"is the finest along an axis): {HELP}"
        )
    if not found.warnings:
        found.lines.append("every direction of an image is measured by some of the measurements")
    if coverage.rows < coverage.count:
        found.lines.append(f"looked at were the first {coverage.rows} measurements")
    low, high = float(coverage.pixels.min()), float(coverage.pixels.max())
    if coverage.one_operator:
        found.lines.append("all measurements have the same operator")
    elif coverage.pixelwise and coverage.frequencies is not None and high <= 1.0001:
        found.lines.append(
            f"a pixel is measured in {percent(low)} to {percent(high)} of the measurements"
        )
    return found


def unmeasured(train: MeasurementSet) -> list[str] | None:
    """Returns a sentence for each part of the images that no training measurement has.

    Arguments:
        train: The training measurements; of many the first ones are looked at.

    Returns:
        None for a channel that is not linear, of which it is not known.
    """
    few = slice(max(LOOKED_AT // math.prod(train.channel.shape), LEAST))
    coverage = take_coverage(MeasurementSet(train.select(few), train.channel))
    return None if coverage is None else coverage_findings(coverage).warnings


def _places(places: np.ndarray) -> tuple[str, int]:
    """Returns the names of the first places, and their number."""
    named = [f"({', '.join(map(str, place))})" for place in places[:NAMED].tolist()]
    return ", ".join(named) + (", …" if len(places) > NAMED else ""), len(places)


def percent(fraction: float) -> str:
    """Returns a fraction as text, in per cent."""
    return f"{100 * fraction:.3g} %"
