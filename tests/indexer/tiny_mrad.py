"""`mrad`, with the tests' tiny CLIP known to open_clip: `python tiny_mrad.py FOLDER COMMAND...`.

FOLDER holds tiny.json, open_clip's config. MRAD_TEST_SLOW: seconds that every batch takes longer,
so that a kill can be aimed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import open_clip

from mrad.encoder.encoder import Encoder


def slow_down(seconds: float) -> None:
    """Every batch takes `seconds` longer to encode."""
    encode = Encoder.encode_pixels

    def slowly(self, pixels, **options):
        time.sleep(seconds)
        return encode(self, pixels, **options)

    Encoder.encode_pixels = slowly


if __name__ == "__main__":
    open_clip.add_model_config(Path(sys.argv.pop(1)))
    slow_down(float(os.environ.get("MRAD_TEST_SLOW", "0")))
    from mrad_indexer.cli.main import app

    app()
