"""Measures diffem's speed and memory as ratios: `make bench`; docs/performance.md explains."""
