"""What every request passes: access, limits, observability."""
