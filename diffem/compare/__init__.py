"""Comparisons on one footing: rows (sets of overrides) × seeds, in one folder and one table."""

from diffem.compare.cell import Cell
from diffem.compare.folder import compare
from diffem.compare.study import Study, methods_study, read_study

__all__ = ["Cell", "Study", "compare", "methods_study", "read_study"]
