"""Compares rows of overrides under equal conditions: the same data, network, budget and seeds.

    diffem compare --study mask --out runs/mask
    diffem compare --methods diffem em_mmps --out runs/mask -- em.seconds=60 em.rounds=99

Each row and seed is a run of `diffem train` in a process of its own. Finished runs are kept: the
same command resumes a comparison. A run that fails is marked, the others are run, and the exit
code is then 1.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffem.cli.comparison import compare
from diffem.cli.errors import report_user_errors
from diffem.cli.study import known_studies, methods_study, read_study
from diffem.config.secrets import move_secrets_to_env

EPILOG = """\
studies (conf/study):
  {studies}

budgets are overrides, given after -- to all rows alike; the rounds end by what is used up first:
  em.rounds=6 em.steps_per_round=400    rounds, and optimiser steps of each
  em.seconds=60 em.rounds=99            seconds of E- and M-steps, to the nearest round
  em.nfe=1000000 em.rounds=99           images through the network, forward or backward

a row's own overrides replace those after --, and those the study's common ones.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the jobs that are missing and writes the comparison.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: Always: with code 1 if a run failed or the user made an error.
    """
    chosen = build_parser().parse_args(arguments)
    with report_user_errors():
        study = (
            methods_study(chosen.methods, chosen.overrides)
            if chosen.methods
            else read_study(chosen.study)
        )
        study = replace(
            study,
            common=tuple(move_secrets_to_env((*study.common, *chosen.overrides))),
            seeds=tuple(chosen.seeds or study.seeds),
        )
        failed = compare(study, chosen.out.resolve(), jobs=chosen.jobs)
    sys.exit(1 if failed else 0)


def build_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        prog="diffem compare",
        usage="%(prog)s (--study NAME | --methods NAME …) --out DIR\n"
        "       [--seeds SEED …] [--jobs N] [-- OVERRIDE …]",
        description="Compares methods, or the rows of a study, under equal conditions.",
        epilog=EPILOG.format(studies=", ".join(known_studies())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", metavar="NAME", help="a file of conf/study")
    what.add_argument(
        "--methods", metavar="NAME", nargs="+", help="rows that are files of conf/method"
    )
    parser.add_argument(
        "--seeds", metavar="SEED", nargs="+", type=int, help="default: the study's, or 0 1 2"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder of the comparison"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="runs at a time, default 1"
    )
    parser.add_argument("overrides", nargs="*", help="after --, what all runs are given")
    return parser


if __name__ == "__main__":
    main()
