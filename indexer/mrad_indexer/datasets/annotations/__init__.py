"""Annotations as tools export them: one module for each, and what they have in common."""
