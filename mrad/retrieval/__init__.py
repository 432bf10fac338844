"""Asking the memory."""
