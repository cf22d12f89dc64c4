"""Arrays in the data's own units, and the measurements that a channel takes for them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from diffem.corruption import (
    Channel,
    Denoising,
    DistortedChannel,
    Fourier,
    LinearChannel,
    LinearOperator,
    Mask,
    Measurement,
    PhaseRetrieval,
    Weighting,
)
from diffem.corruption.fourier import kspace_mask
from diffem.corruption.recorded import Recorded
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError

Array = np.ndarray | Tensor


def measurement_of(
    y: Array,
    channel: Channel,
    scale: Scale,
    *,
    operator: Array | None = None,
    noise: Array | None = None,
    source: str = "y",
) -> Measurement:
    """Returns arrays in the data's units as measurements on the scale of [-1, 1], float32.

    A linear channel's A x is in the units of x, so y is scaled as x is; so is y of another
    channel that keeps units. Any other one has units of its own for y, and y stays as it is.

    Arguments:
        y: Measurements, (N, *M), real numbers; (N, H, W) where M is (1, H, W). NaN is "not
            measured": of a mask no channel of that pixel is; of other operators φ says the same.
        channel: The channel that they went through, on the scale of [-1, 1].
        scale: The data's units: the range of the clean images.
        operator: The operator's parameters φ of each measurement, (N, *P): for a mask, 0 where
            nothing was measured. None where the channel has the same for all, and for a mask.
        noise: The standard deviation of each measurement's noise in the data's units, (N,), of a
            linear channel; of a weighting that of every pixel, (N, *M); of a channel that is not
            linear the noise's parameters, (N, K). None where the channel has one number.
        source: What the sentences call the measurements, such as "dataset.path: y.npz".

    Raises:
        UserError: If an array is not of real numbers, of a shape that does not fit the channel,
            or missing, or is given although the channel has one number in its place.
    """
    values = numbers(y, f"{source}: y", nan=True)
    if not len(values):
        raise UserError(f"{source} holds no measurement; give at least one")
    if isinstance(channel, LinearChannel):
        given = _linear(values, channel, scale, operator, noise, source)
    else:
        given = _general(values, channel, scale, operator=operator, noise=noise, source=source)
    single = Measurement(*(field.float() for field in given))
    if not single.y.isfinite().all():
        raise UserError(
            f"{source}: y holds values that are too large for dataset.range="
            f"[{scale.low:g},{scale.high:g}] and float32; correct them, or mark them by NaN"
        )
    return channel.assume(single)


def operator_of(
    n: int,
    channel: LinearChannel,
    *,
    y: Array | None = None,
    operator: Array | None = None,
    std: Array | None = None,
    scale: Scale = Scale(-1.0, 1.0),  # noqa: B008 - immutable
    source: str = "y",
) -> Tensor:
    """Returns the operator's parameters φ of measurements alone, (N, *P), float32.

    Arguments:
        n: The number N of measurements.
        channel: As for `measurement_of`.
        y: The measurements; of a mask alone, and only if some hold NaN.
        operator: As for `measurement_of`.
        std: The standard deviation of every pixel; of a weighting alone.
        scale: As for `measurement_of`.
        source: As for `measurement_of`.

    Raises:
        UserError: As `measurement_of`.
    """
    own = own_operator(channel)
    if not isinstance(own, Mask | Weighting):
        return _operator(n, own, operator, channel, source).float()
    measured = torch.ones(n, *own.shape, dtype=torch.bool)
    if y is not None:
        found = torch.from_numpy(~np.isnan(np.asarray(y)))
        measured = _with_channels(found, own.shape, channel, source)
    if isinstance(own, Weighting):
        weight = _weights(measured, channel, scale, operator=operator, std=std, source=source)
        return weight.float()
    return _mask(measured, own, operator, source).float()


def measured_entries(
    y: np.ndarray, channel: LinearChannel, operator: np.ndarray, *, source: str
) -> np.ndarray:
    """Returns which entries of y the operator measures, (N, *M) as y.

    Arguments:
        y: As for `measurement_of`.
        channel: The channel, with an operator that is neither a mask nor a weighting.
        operator: As for `measurement_of`.
        source: As for `measurement_of`.

    Raises:
        UserError: If an array does not fit the channel.
    """
    own = own_operator(channel)
    phi = _operator(len(y), own, operator, channel, source)
    zeros = torch.zeros(len(y), *own.measured_shape)
    _with_channels(torch.from_numpy(np.empty(y.shape, bool)), zeros.shape[1:], channel, source)
    return (own.measured_mask(zeros, phi) != 0).reshape(y.shape).numpy()


def own_operator(channel: LinearChannel) -> LinearOperator:
    """Returns the operator A of a channel, behind the records that it may draw φ from."""
    operator = channel.forward_operator
    return operator.operator if isinstance(operator, Recorded) else operator


def numbers(values: Array, name: str, *, nan: bool = False) -> Tensor:
    """Returns real numbers as a float64 tensor on the CPU.

    Arguments:
        values: The numbers, (N, …); of any width and byte order.
        name: What the sentences call them.
        nan: Whether NaN is allowed.

    Raises:
        UserError: If they are no real numbers with one row for each measurement, or one is
            infinite, or NaN where it must not be.
    """
    array = plain_array(values, name)
    tensor = torch.from_numpy(array.astype(np.float64))
    if tensor.isinf().any():
        advice = "mark it by NaN" if nan else "correct it"
        raise UserError(f"{name} holds infinity; {advice}")
    if not nan and tensor.isnan().any():
        raise UserError(f"{name} holds NaN; correct it")
    return tensor


def plain_array(values: Array, name: str) -> np.ndarray:
    """Returns real numbers as an array of numpy, in their own dtype.

    Arguments:
        values: The numbers, (N, …): an array, a tensor on any device, or nested lists.
        name: What the sentences call them.

    Raises:
        UserError: If they are no real numbers with one row for each measurement, or masked.
    """
    if isinstance(values, Tensor):
        values = (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu()
    if np.ma.isMaskedArray(values) and np.ma.getmaskarray(values).any():
        raise UserError(
            f"{name} is a masked array, whose mask is not read; give NaN where nothing was "
            "measured, y.astype(float).filled(numpy.nan)"
        )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} must have rows of one shape ({error}); mend them") from error
    if array.dtype.kind not in "buif" or array.ndim == 0:
        raise UserError(
            f"{name} must be real numbers, (N, …), got {array.dtype} of shape "
            f"{list(array.shape)}; convert it"
        )
    return array


def _linear(
    y: Tensor,
    channel: LinearChannel,
    scale: Scale,
    operator: Array | None,
    noise: Array | None,
    source: str,
) -> Measurement:
    """Returns the measurements of a linear channel, float64."""
    own = own_operator(channel)
    if isinstance(own, Weighting):
        y = _with_channels(y, own.shape, channel, source)
        phi = _weights(~y.isnan(), channel, scale, operator=operator, std=noise, source=source)
        y = scale.normalise(y).nan_to_num(nan=0.0) * phi
        return Measurement(y, phi, _noise(len(y), channel, scale, None, source))
    if isinstance(own, Mask):
        y = _with_channels(y, own.shape, channel, source)
        phi = _mask(~y.isnan(), own, operator, source)
    else:
        phi = _operator(len(y), own, operator, channel, source)
        expected = own.apply(torch.zeros(1, *own.shape, dtype=phi.dtype), phi[:1]).shape[1:]
        y = _with_channels(y, expected, channel, source)
        if (y.isnan() & (own.measured_mask(y.nan_to_num(nan=0.0), phi) != 0)).any():
            raise UserError(
                f"{source} holds NaN, which says that something was not measured, and {channel} "
                f"takes it for measured; {_instead_of_nan(own)}"
            )
    if own.preserves_intensity:
        y = scale.normalise(y)
    else:  # A maps the centre of the scale to A c, which need not be c
        centre = torch.full((len(y), *own.shape), scale.centre, dtype=y.dtype)
        y = (y - own.apply(centre, phi)) * scale.factor
    y = y.nan_to_num(nan=0.0) * own.measured_mask(y, phi)
    return Measurement(y, phi, _noise(len(y), channel, scale, noise, source))


def _instead_of_nan(own: LinearOperator) -> str:
    """Returns what to do about NaN in y under an operator that is no mask, as a sentence ends."""
    if isinstance(own, Denoising):
        return "give measurements without, or train with corruption=mask"
    if isinstance(own, Fourier):
        return "give 0 in `operator` for a line of k-space that was not measured"
    if own.holds_nan:
        return (
            "give NaN in `operator` too in place of the angle of a projection that was not taken, "
            "or leave these measurements out"
        )
    return "fill it in, or leave these measurements out"


def _general(
    y: Tensor,
    channel: Channel,
    scale: Scale,
    *,
    operator: Array | None,
    noise: Array | None,
    source: str,
) -> Measurement:
    """Returns the measurements of a channel that only draws and embeds, float64."""
    if y.isnan().any():
        raise UserError(
            f"{source} holds NaN, and {channel} does not say what was not measured; fill it in, "
            "or leave these measurements out"
        )
    drawn = channel.draw(torch.zeros(1, *channel.shape), Generator().manual_seed(0))
    y = _with_channels(y, drawn.y.shape[1:], channel, source)
    if channel.keeps_units:
        y = scale.normalise(y)
    return Measurement(y, *_general_parameters(len(y), channel, scale, operator, noise, source))


def _general_parameters(
    n: int,
    channel: Channel,
    scale: Scale,
    operator: Array | None,
    noise: Array | None,
    source: str,
) -> tuple[Tensor, Tensor]:
    """Returns the parameters, (n, *P) and (n, K), of a channel that only draws and embeds."""
    # Draws show the shapes, and whether a parameter is the same for all.
    drawn = channel.draw(torch.zeros(2, *channel.shape), Generator().manual_seed(0))
    distorted = isinstance(channel, DistortedChannel)
    nan = distorted and channel.linear.forward_operator.holds_nan
    phi = _given_or_drawn(n, operator, drawn.operator, f"{source}: operator", channel, nan=nan)
    if isinstance(channel, PhaseRetrieval):  # its y, and the noise of it, have units of their own
        return phi, _noise(n, channel, Scale(-1.0, 1.0), noise, source)
    if not distorted:
        return phi, _given_or_drawn(n, noise, drawn.noise, f"{source}: std", channel)
    # Its noise is that of the linear channel before the distortions, in the data's units.
    levels = _noise(n, channel.linear, scale, noise, source)
    if operator is not None:
        sizes = [len(distortion.parameters) for distortion in channel.distortions]
        linear, *columns = phi.split([phi.shape[1] - sum(sizes), *sizes], dim=1)
        name, before = f"{source}: operator", channel.linear.forward_operator
        _refuse("holds NaN; correct it" if torch.cat(columns, 1).isnan().any() else None, name)
        _refuse(before.fault(linear.reshape(n, *before.draw(1, Generator()).shape[1:])), name)
        for distortion, own in zip(channel.distortions, columns, strict=True):
            for parameter, values in zip(distortion.parameters.values(), own.T, strict=True):
                if parameter.known is None:
                    _refuse(parameter.fault(values), name)
        measurement = Measurement(drawn.y[:1].double().expand(n, *drawn.y.shape[1:]), phi, levels)
        if not torch.allclose(channel.assume(measurement).operator, phi, equal_nan=True):
            raise UserError(_ignored(name, channel))
    return phi, levels


def check_parameters(
    n: int,
    channel: Channel,
    scale: Scale,
    *,
    operator: Array | None = None,
    noise: Array | None = None,
    source: str = "y",
) -> None:
    """Checks the parameters of measurements without these; those of masks are read with them.

    Arguments:
        n: The number of measurements.
        channel: As for `measurement_of`.
        scale: As for `measurement_of`.
        operator: As for `measurement_of`.
        noise: As for `measurement_of`.
        source: As for `measurement_of`.

    Raises:
        UserError: As `measurement_of`.
    """
    if not isinstance(channel, LinearChannel):
        _general_parameters(n, channel, scale, operator, noise, source)
        return
    own = own_operator(channel)
    if not isinstance(own, Mask | Weighting):
        _operator(n, own, operator, channel, source)
    elif operator is not None:
        numbers(operator, f"{source}: operator")
    if not isinstance(own, Weighting):
        _noise(n, channel, scale, noise, source)


def _with_channels(y: Tensor, expected: Sequence[int], channel: Channel, source: str) -> Tensor:
    """Returns measurements of the shape that a channel gives, grey images with their channel."""
    if y.shape[1:] == tuple(expected):
        return y
    if (1, *y.shape[1:]) == tuple(expected):
        return y.unsqueeze(1)
    raise UserError(
        f"{source}: the measurements have shape {list(y.shape[1:])}, and {channel} of images "
        f"{list(channel.shape)} gives {list(expected)}; give others, or train with another "
        "dataset.shape or corruption"
    )


def _mask(measured: Tensor, own: Mask, operator: Array | None, source: str) -> Tensor:
    """Returns the mask of each measurement, float64: 1 where all channels were measured.

    Arguments:
        measured: Where y is not NaN, (N, *shape).
        own: The operator.
        operator: The masks that were given, if any.
        source: What the sentences call the measurements.
    """
    shape = (len(measured), *own.mask_shape)
    if len(own.shape) > 1:  # a pixel is measured in all of its channels, or not
        measured = measured.all(dim=1, keepdim=True)
    if operator is None:
        return measured.double()
    mask = numbers(operator, f"{source}: operator")
    if mask.shape != shape and mask.unsqueeze(1).shape == shape:
        mask = mask.unsqueeze(1)
    if mask.ndim == len(shape) and mask.shape[1:] == (*(1,) * (len(shape) - 2), shape[-1]):
        mask = mask.expand(shape)  # of columns, as k-space has them
    if mask.shape != shape:
        raise UserError(
            f"{source}: a mask in operator has shape {list(mask.shape[1:])}, and "
            f"{list(own.mask_shape)} is needed for each of the {len(measured)} measurements; "
            "correct it"
        )
    return ((mask != 0) & measured).double()


def _weights(
    measured: Tensor,
    channel: LinearChannel,
    scale: Scale,
    *,
    operator: Array | None,
    std: Array | None,
    source: str,
) -> Tensor:
    """Returns σ_y / σ(p) of every pixel, (N, *shape), float64; 0 where nothing was measured.

    Arguments:
        measured: Where y is not NaN, (N, *shape).
        channel: The channel, whose one σ_y is on the scale of [-1, 1].
        scale: The data's units.
        operator: 0 where nothing was measured, if it was given.
        std: σ(p) in the data's units, (N, *shape), perhaps without an axis of channels; NaN where
            nothing was measured.
        source: What the sentences call the measurements.
    """
    sigma = channel.noise.parameters["std"].known if "std" in channel.noise.parameters else None
    if sigma is None or channel.noise.needs_intensity:
        raise UserError(
            f"corruption=weighting needs Gaussian noise with one corruption.noise.std, got "
            f"{channel.noise}; choose corruption/noise=gaussian and one number"
        )
    if std is None:
        raise UserError(
            f"{source} has no std of every pixel, which corruption=weighting needs; give it, or "
            "choose corruption=denoising or mask"
        )
    values = numbers(std, f"{source}: std", nan=True)
    values = values.unsqueeze(1) if values.unsqueeze(1).shape == measured.shape else values
    if values.shape != measured.shape or (values <= 0).any():
        raise UserError(
            f"{source}: std must be positive numbers of the shape {list(measured.shape[1:])} for "
            "each measurement, NaN where nothing was measured, got the shape "
            f"{list(values.shape[1:])} and a least value of {values.nan_to_num(nan=1.0).min():g}"
        )
    weight = torch.where(measured & values.isfinite(), sigma / (values * scale.factor), 0)
    if operator is not None:
        mask = numbers(operator, f"{source}: operator")
        mask = mask.unsqueeze(1) if mask.ndim == weight.ndim - 1 else mask
        try:
            weight = weight * (mask != 0).expand_as(weight)
        except RuntimeError as error:
            raise UserError(
                f"{source}: operator has the shape {list(mask.shape)}, and "
                f"{list(weight.shape)} is needed, 0 where nothing was measured; correct it"
            ) from error
    return weight


def _operator(
    n: int, own: LinearOperator, operator: Array | None, channel: Channel, source: str
) -> Tensor:
    """Returns φ of each measurement, (N, *P), of an operator that is no mask."""
    drawn = own.draw(2, Generator().manual_seed(0))
    if operator is not None and not drawn.numel():
        raise UserError(f"{source}: operator has no effect on {channel}; leave it out")
    known = [p.name for p in own.parameters.values() if p.known is not None]
    if operator is not None and known:
        raise UserError(
            f"{source} has `operator` for each measurement, and {known[0]} is one number for all; "
            "give a range [low, high] that holds them in its place, or leave `operator` out"
        )
    if operator is None and any(p.known is None for p in own.parameters.values()):
        raise UserError(
            f"{source} has no `operator`, and {channel} draws its own for each measurement; give "
            "one number in its place, or `operator`"
        )
    name = f"{source}: operator"
    if operator is not None and isinstance(own, Fourier):
        phi = _kspace_mask(n, numbers(operator, name), own, name)
    else:
        phi = _given_or_drawn(n, operator, drawn, name, channel, nan=own.holds_nan)
    if operator is not None:
        _refuse(own.fault(phi), name)
        if not torch.allclose(own.assume(phi), phi, equal_nan=True):
            raise UserError(_ignored(name, channel))
    return phi


def _kspace_mask(n: int, given: Tensor, own: Fourier, name: str) -> Tensor:
    """Returns masks of k-space of each measurement, (N, 1, 1, W) of lines, (N, 1, H, W) of points.

    Arguments:
        n: N.
        given: What was given, of any shape.
        own: The operator.
        name: What the sentences call it.
    """
    height, width = own.shape[1:]
    given = given[None] if n == 1 != len(given) else given
    mask = kspace_mask(given, (height, width))
    if mask is None or len(mask) != n:
        raise UserError(
            f"{name} must be a mask of k-space for each measurement, the same in all channels, "
            f"{[n, width]} of lines or {[n, height, width]} of points, got {list(given.shape)}; "
            "correct it"
        )
    return mask


def _refuse(fault: str | None, name: str) -> None:
    """Raises a UserError if there is a fault of the parameters of a name."""
    if fault is not None:
        raise UserError(f"{name} {fault}")


def _ignored(name: str, channel: Channel) -> str:
    """Returns that a channel takes one number for all where a measurement has its own."""
    return (
        f"{name} has parameters of each measurement of which {channel} has one number for all; "
        "give a range [low, high] that holds them in its place, or that number"
    )


def _given_or_drawn(
    n: int,
    given: Array | None,
    drawn: Tensor,
    name: str,
    channel: Channel,
    *,
    nan: bool = False,
) -> Tensor:
    """Returns a channel's parameters of each measurement, (N, *P).

    Arguments:
        n: N.
        given: The parameters, or None.
        drawn: Those of two draws of the channel, (2, *P).
        name: What the sentences call them.
        channel: The channel.
        nan: Whether NaN is allowed: a part that was not taken.

    Raises:
        UserError: If they are of another shape, or are missing and differ between draws.
    """
    if given is None:
        if drawn.numel() and not torch.equal(drawn[0], drawn[1]):
            raise UserError(
                f"{name} is missing, and {channel} has another one for each measurement; give it"
            )
        return drawn[:1].double().repeat(n, *(1,) * (drawn.ndim - 1))
    values, shape = numbers(given, name, nan=nan), (n, *drawn.shape[1:])
    # An axis of length 1 may be left out, as that of a channel or of a mask's rows.
    if [s for s in values.shape if s > 1] == [s for s in shape if s > 1]:
        values = values.reshape(shape)
    if values.shape != shape:
        raise UserError(
            f"{name} must have the shape {list(shape)} for {channel}, got {list(values.shape)}; "
            "correct it"
        )
    return values


def _noise(
    n: int,
    channel: LinearChannel | PhaseRetrieval,
    scale: Scale,
    std: Array | None,
    source: str,
) -> Tensor:
    """Returns the noise's parameters of each measurement, (N, K), on the scale of [-1, 1]."""
    parameters, columns = channel.noise.parameters, []
    if std is not None and "std" not in parameters:
        raise UserError(f"{source}: std has no effect on {channel.noise}; leave it out")
    for name, parameter in parameters.items():
        if name == "std" and std is not None:
            values = _of_measurements(numbers(std, f"{source}: std", nan=True), channel, source)
            if parameter.known is not None:
                raise UserError(
                    f"{source} has the std of each measurement, and {parameter.name} is one "
                    "number for all; give a range [low, high] that holds them in its place, or "
                    "leave std out"
                )
            if values.shape not in ((n,), (n, 1)) or not (values > 0).all():
                raise UserError(
                    f"{source}: std must be {n} positive numbers, (N,), got the shape "
                    f"{list(values.shape)} and a smallest value of {values.min():g}"
                )
            levels = values.flatten() * scale.factor
            _refuse(parameter.fault(levels, 1 / scale.factor), f"{source}: std")
            columns.append(levels)
        elif parameter.known is None:
            raise UserError(
                f"{parameter.name} is a range, and {source} does not have the value of each "
                "measurement; give one number"
            )
        else:
            columns.append(torch.full((n,), parameter.known, dtype=torch.float64))
    return torch.stack(columns, dim=1)


def _of_measurements(std: Tensor, channel: LinearChannel | PhaseRetrieval, source: str) -> Tensor:
    """Returns the noise of each measurement, (N,), where it is given for each pixel, (N, *M).

    Raises:
        UserError: If it differs between the pixels of a measurement.
    """
    if std.ndim < 2 or std.shape[1:] == (1,):
        return std
    flat = std.flatten(1)
    if not (flat == flat[:, :1]).all():
        linear = isinstance(channel, LinearChannel)
        advice = "choose corruption=weighting" if linear else "give one number for each"
        raise UserError(
            f"{source}: std differs between the pixels of a measurement, and {channel.noise} has "
            f"one number for all of them; {advice}"
        )
    return flat[:, 0]
