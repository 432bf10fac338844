"""Thresholds and probabilities from labelled images."""
