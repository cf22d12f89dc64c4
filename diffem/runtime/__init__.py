"""Runtime: errors, seeds, signals, processes and progress."""
