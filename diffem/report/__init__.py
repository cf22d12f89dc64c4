"""The report of a run: figures, summary and closing table."""

from diffem.report.run_report import RunReport

__all__ = ["RunReport"]
