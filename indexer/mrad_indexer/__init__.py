"""Offline work: read data, build and calibrate memories, train heads, evaluate. The `mrad` command."""
