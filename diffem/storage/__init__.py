"""Storage: files that are complete or absent, and what a run keeps in them."""
