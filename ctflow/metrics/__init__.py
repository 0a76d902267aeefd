"""Metrics and monitors as pure functions and torchmetrics classes."""
