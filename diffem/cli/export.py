"""Writes a finished run into a folder to give away: `diffem export RUN --out DIR`.

    diffem export runs/mine --out exported --onnx

What is in it is in diffem/result/export.py.
"""

from collections.abc import Sequence

from diffem.cli.arguments import parse_export
from diffem.cli.errors import report_user_errors
from diffem.result.export import WRITERS, export_run
from diffem.runtime.progress import console


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports a run.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_export(arguments)
    with report_user_errors():
        written = export_run(
            chosen.run,
            chosen.out,
            reconstructions=WRITERS[chosen.reconstructions],
            onnx=chosen.onnx,
            trust=chosen.trust,
        )
        console.print(f"wrote {chosen.out}: {', '.join(written)}", soft_wrap=True)
        console.print(f'read it by diffem.load("{chosen.out}")', soft_wrap=True)
