"""The model card of an exported run: a README.md in the form of the Hugging Face Hub."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import yaml

from diffem import __version__
from diffem.corruption.array_file import array_files
from diffem.result.result import Result
from diffem.result.weights import Description
from diffem.storage.rows import last_draws

HEAD = """---
library_name: diffem
tags:
- diffem
- diffusion
- inverse-problems
- posterior-sampling
---

# {name}

A sampler of clean images x given a measurement y{prior}, learned {how} by
[diffem](https://arxiv.org/abs/2510.12691) {version}.
"""
WHAT = {
    "README.md": "this page",
    "posterior.safetensors": "the sampler of p(x | y): averaged weights, and in the metadata the "
    "settings, the channel and the scale",
    "posterior.onnx": "its denoiser",
    "prior.safetensors": "the sampler of p(x), likewise",
    "prior.onnx": "its denoiser",
    "student.safetensors": "a sampler of p(x | y) of one evaluation, distilled from the first",
    "figures": "held-out measurements and their reconstructions, samples of the prior, the scores "
    "over the rounds",
    "summary.json": "the scores of each round, and of the result",
}
BAR = r"\|"  # a | in a cell of a table
LIMITS = """## Limits

- Samples are of p(x | y) only if the measurements went through the channel above. The residual χ²
  cannot show that they did: a noise assumed too small, or a blur too narrow, leaves it near 1.
- What no training measurement shows (pixels that are always missing, frequencies that a blur
  removes from all) is a guess of the initial model and the network.
- The prior knows the images that were measured for the training, and no others. Measurements of
  something else are reconstructed as if they were of these.
- One sample is one of many that fit. Draw several, and look at their standard deviation.
"""


def model_card(
    result: Result,
    about: Description,
    name: str,
    *,
    files: Sequence[str],
    graphs: Mapping[str, Sequence[str]],
) -> str:
    """Returns the card.

    Arguments:
        result: What the run learned.
        about: What is written with its weights.
        name: The name of the folder.
        files: The names of what is in the folder besides the card.
        graphs: The inputs of each ONNX file, by its name.
    """
    summary = result.summary or {}
    clean = summary.get("clean_images")
    parts = [
        HEAD.format(
            name=name,
            version=__version__,
            prior="" if result.prior is None else ", and one of clean images p(x)",
            how="with clean images" if clean else "from corrupted images alone",
        ),
        _data(result, about, summary),
        _channel(result, about),
        _scores(summary, files),
        _sampling(result, name),
        *([_onnx(result, graphs)] if graphs else []),
        _files(summary, files),
        LIMITS,
    ]
    return "\n".join(parts)


def _data(result: Result, about: Description, summary: Mapping[str, Any]) -> str:
    low, high = result.scale.low, result.scale.high
    rows = {
        "measurements": f"{about.size}, of `dataset={summary.get('dataset', 'measurements')}`",
        "shape of an image": str(list(result.channel.shape)),
        "form of the files": f"{result.format.suffix}, {result.format.dtype}",
        "units": f"{low:g} and {high:g} are −1 and 1 on the network's scale",
        "clean images seen": "yes" if summary.get("clean_images") else "none",
        "method": f"`{summary.get('method')}`, {about.round} rounds, seed {summary.get('seed')}",
    }
    return _table("## Data", rows)


def _channel(result: Result, about: Description) -> str:
    corruption = deepcopy(dict(about.config["corruption"]))
    for part, key in array_files(corruption):
        part[key] = "(in the weights)"
    text = yaml.safe_dump(corruption, sort_keys=False, allow_unicode=True)
    lines = [
        "## Channel\n",
        f"{result.channel}; numbers of the noise are in the data's units:\n",
        f"```yaml\n{text}```\n",
    ]
    if about.estimates:
        found = ", ".join(f"{name} {value:.4g}" for name, value in about.estimates.items())
        lines.append(f"Learned from the measurements, on the scale of [−1, 1]: {found}.\n")
    return "\n".join(lines)


def _scores(summary: Mapping[str, Any], files: Sequence[str]) -> str:
    final = summary.get("final", {})
    numbers = {k: v for k, v in final.items() if isinstance(v, int | float)}
    rows = {f"`{name}`": f"{value:.4g}" for name, value in numbers.items()}
    figure = "\n![Held-out measurements](figures/heldout.png)\n" if "figures" in files else ""
    note = "\nStandard deviations and distances are on the scale of [−1, 1].\n" if rows else ""
    return _table("## Scores on held-out measurements", rows) + note + figure


def _files(summary: Mapping[str, Any], files: Sequence[str]) -> str:
    draws = last_draws(summary.get("rounds", []))
    most, sample = max(draws, default=1), "a sample of p(x | y)"
    drawn = sample if most == 1 else f"made of {most} samples of p(x | y) (`em.relax`)"
    drawn = drawn if len(draws) < 2 else f"{sample}, or {drawn},"
    what = WHAT | {
        "reconstructions": f"{drawn} for each training measurement, in their order and units, of "
        "the last round"
    }
    return _table("## Files", {file: what[file] for file in ("README.md", *files)})


def _sampling(result: Result, name: str) -> str:
    new = "new = run.prior.sample(64)          # new images\n" if result.prior else ""
    generate = f"    diffem generate {name} --count 64 --out generated\n" if result.prior else ""
    return (
        "## How to sample\n\n"
        f"    pip install diffem=={__version__}\n"
        f"    diffem sample {name} --input MEASUREMENTS --n 16 --out samples\n{generate}\n"
        "```python\nimport diffem\n\n"
        f'run = diffem.load("{name}")\n'
        f"x = run.posterior.sample(y, n=16)   # 16 samples of each y, in the data's units\n"
        f"{new}```\n"
    )


def _onnx(result: Result, graphs: Mapping[str, Sequence[str]]) -> str:
    rows = {f"`{file}`": ", ".join(f"`{name}`" for name in held) for file, held in graphs.items()}
    factor, centre = result.scale.factor, result.scale.centre
    return (
        _table("## ONNX", rows)
        + "\nEach gives `x`, the denoised image E[x | x_t, …], on the scale of [−1, 1], for any "
        "batch size. `t` in [0, 1], (B,), is a time of the noise schedule in the settings: "
        "x_t = α_t x + σ_t z. `y` is on the scale of [−1, 1] as well: of an operator that keeps "
        f"constant images (y − {centre:g}) × {factor:g}. A sampler is not part of the graph.\n"
    )


def _table(title: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {text.replace('|', BAR)} |" for name, text in rows.items()]
    return "\n".join([f"{title}\n", "| | |", "|---|---|", *lines, ""])
