"""Metrics, traces, logs, drift, audit."""
