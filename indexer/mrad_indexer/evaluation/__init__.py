"""Metrics, the run over a dataset, and the report."""
