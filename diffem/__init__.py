"""diffem: posterior samplers and priors from corrupted data alone (DiffEM, arXiv 2510.12691)."""

__version__ = "0.2.0"
