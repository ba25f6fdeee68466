"""Experiments, probes and explorables behind the book *Why Batch Normalization Works*."""

__version__ = "0.1.0"
