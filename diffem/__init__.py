"""diffem: posterior samplers and priors from corrupted data alone (DiffEM, arXiv 2510.12691)."""
