"""Training of heads over features that are computed once."""
