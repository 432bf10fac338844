"""Pictures are opened by the guarded reader alone: another open would bring back bombs, Ghostscript and
silent misreadings. Suffixes are one list, also where the code stands alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import mrad_client.batch.sources
import pytest

from mrad.images.formats import SUFFIXES

ROOT = Path(__file__).parents[3]
FOLDERS = ("mrad", "indexer/mrad_indexer", "service/mrad_service", "clients/python/mrad_client")
MODULES = {"tifffile", "imagecodecs", "imageio", "cv2", "simplejpeg", "pydicom", "pillow_heif"}
"""Other ways to open a picture."""
ALLOWED = {
    "mrad/images",
    "clients/python/mrad_client/_pictures.py",  # stands alone: what the server sent, by named formats
}


def opens(path: Path) -> list[int]:
    """Lines that open pictures by another way."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if node.func.attr == "open" and isinstance(owner, ast.Name) and owner.id == "Image":
                found.append(node.lineno)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[0] in MODULES for name in names):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_else_opens_pictures(folder):
    for path in (ROOT / folder).rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(tuple(ALLOWED)):
            assert not opens(path), f"{name}: use mrad.images.reader or mrad.images.masks"


def test_the_rule_finds_what_it_forbids(tmp_path):
    (tmp_path / "a.py").write_text("from PIL import Image\nImage.open('x')\nimport tifffile\n")
    assert sorted(opens(tmp_path / "a.py")) == [2, 3]


def test_every_open_names_its_format():
    for path in [
        *(ROOT / "mrad/images").rglob("*.py"),
        ROOT / "clients/python/mrad_client/images.py",
    ]:
        for call in re.findall(r"Image\.open\([^\n]*", path.read_text(encoding="utf-8")):
            assert "formats=" in call, f"{path.name}: {call}"


def test_suffixes_are_one_list():
    assert mrad_client.batch.sources.SUFFIXES == SUFFIXES
    page = (ROOT / "service/mrad_service/page/intake.js").read_text(encoding="utf-8")
    pattern = re.search(r"LOOKS_LIKE =\s*/(.*?)/i", page, re.DOTALL).group(1)
    for suffix in SUFFIXES:
        assert re.search(pattern, f"x{suffix}", re.IGNORECASE), suffix
