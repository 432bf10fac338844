"""What good images say of each other, each left out: the scales of `nn` and `combined`."""
