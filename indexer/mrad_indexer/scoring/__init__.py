"""Scoring any number of files without a server: resumable, every error collected."""
