"""Draws images from the prior of a finished run: `diffem generate RUN --count … --out …`.

    diffem generate runs/mine --count 64 --out generated

Writes them into a new folder, in the format, dtype and units of the measurements that the run
learned from; those of a benchmark as a float32 .npy file, in [-1, 1].
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from diffem.cli.arguments import parse_generate
from diffem.cli.errors import report_user_errors
from diffem.data.format import write_generated
from diffem.posterior.posterior import chunk_count
from diffem.result import PriorSampler, load
from diffem.runtime.progress import console, progress_bar
from diffem.runtime.ranges import check


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws images and writes them.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_generate(arguments)
    with report_user_errors():
        count = check("--count", chosen.count)
        result = load(chosen.run, device=chosen.device, trust=chosen.trust)
        prior = result.known_prior()
        write_generated(
            chosen.out,
            result.format,
            result.channel.shape,
            shown(prior, count, seed=chosen.seed),
            count=count,
        )
        console.print(f"wrote {chosen.out}: {count} images", soft_wrap=True)


def shown(prior: PriorSampler, count: int, *, seed: int | None) -> Iterator[Tensor]:
    """Yields samples chunk by chunk, (b, *shape), under a progress bar."""
    total = chunk_count(count, prior.sampling.chunk_size)
    with progress_bar("images", total, "chunks") as advance:
        for chunk in prior.chunks(count, seed=seed):
            yield chunk
            advance()
