"""A dataset to a bank on disk."""
