"""Every measured figure of the documentation: `python -m benchmarks [name ...]`."""
