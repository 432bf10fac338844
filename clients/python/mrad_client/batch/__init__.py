"""Scoring any number of files: bounded, resumable, every error collected.

The transport that judges is a server (`http`) or whatever else keeps `runner.Transport`.
"""

from mrad_client.batch.journal import Journal, JournalError
from mrad_client.batch.pace import Pace
from mrad_client.batch.pictures import Places
from mrad_client.batch.runner import Judged, Transport, run
from mrad_client.batch.sources import Item, find_items

__all__ = [
    "Item",
    "Journal",
    "JournalError",
    "Judged",
    "Pace",
    "Places",
    "Transport",
    "find_items",
    "run",
]
