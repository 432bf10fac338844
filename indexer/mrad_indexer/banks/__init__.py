"""Whole memories: joined, and parted."""
