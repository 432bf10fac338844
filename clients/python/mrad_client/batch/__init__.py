"""Scoring any number of files through a server: bounded, resumable, every error collected."""

from mrad_client.batch.journal import Journal, JournalError
from mrad_client.batch.pace import Pace
from mrad_client.batch.runner import Options, run
from mrad_client.batch.sources import Item, find_items

__all__ = ["Item", "Journal", "JournalError", "Options", "Pace", "find_items", "run"]
