"""The memory bank: entries, keys, and how they lie on disk."""
