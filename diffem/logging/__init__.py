"""Loggers: a file of JSON lines, and Weights & Biases."""
