"""Reports: of a run (figures, summary, closing table), and of a comparison of runs."""

from diffem.report.earlier import EarlierRun
from diffem.report.summary import RunReport

__all__ = ["EarlierRun", "RunReport"]
