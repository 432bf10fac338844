"""Training of the shipped small CLIP on images made by procedure. `python -m pretraining --help`."""
