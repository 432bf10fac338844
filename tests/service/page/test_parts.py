"""How the page is served, and its parts that need no browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

FOLDER = Path(__file__).parents[3] / "service" / "mrad_service" / "page"


class Reader(HTMLParser):
    """Collects what the policy would refuse, and what assistive technology needs."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []
        self.unlabelled: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self._inside_label = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        for name in ("aria-labelledby", "aria-describedby", "for"):
            self.refers += (given.get(name) or "").split()
        if tag == "script" and "src" not in given:
            self.refused.append("an inline script")
        self.refused += [name for name in given if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            if re.match(r"https?:|//", given.get(name) or ""):
                self.refused.append(given[name])
        self._inside_label += tag == "label"
        if tag in ("input", "canvas", "dialog", "progress") and not (
            self._inside_label or {"aria-label", "aria-labelledby", "id"} & set(given)
        ):
            self.unlabelled.append(str(given))

    def handle_endtag(self, tag):
        self._inside_label -= tag == "label"


def test_the_page_is_served_under_a_strict_policy(client):
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in FOLDER.iterdir():
        part = client.get(f"/page/{path.name}")
        assert part.status_code == 200
        assert part.content == path.read_bytes()
    assert client.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    for outside in ("..%2fapp.py", "%2e%2e/app.py", "none.js", "style"):
        assert client.get(f"/page/{outside}").status_code == 404


def test_nothing_in_it_needs_more_than_the_policy_allows():
    reader = Reader()
    reader.feed((FOLDER / "index.html").read_text())
    assert reader.refused == []
    assert reader.unlabelled == []
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.refers) <= set(reader.ids)
    for path in [*FOLDER.glob("*.js"), *FOLDER.glob("*.css")]:
        text = path.read_text()
        assert not re.search(r"https?://|innerHTML|\beval\(|new Function", text), path.name
        assert text.count("\n") <= 400


def test_every_element_that_the_scripts_ask_for_is_there():
    reader = Reader()
    reader.feed((FOLDER / "index.html").read_text())
    for path in FOLDER.glob("*.js"):
        asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", path.read_text())) - {"ring"}
        assert asked <= set(reader.ids), path.name


@pytest.fixture(scope="module")
def node():
    """Run a module's code in Node; gives what it prints, from JSON."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no Node: apt-get install nodejs")

    def run(code: str, given: object) -> object:
        done = subprocess.run(
            [program, "--input-type=module", "-e", code.replace("PAGE", FOLDER.as_uri())],
            input=json.dumps(given), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


DECODE = """
import { decodePng16, fromBase64 } from "PAGE/png16.js";
import { readFileSync } from "node:fs";
const out = [];
for (const bytes of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    const map = await decodePng16(Uint8Array.from(bytes));
    out.push([map.width, map.height, [...map.values]]);
  } catch (error) { out.push(error.message); }
}
console.log(JSON.stringify(out));
"""


def test_every_filter_of_png_is_undone(node):
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(40) * 700, np.arange(61) * 300).astype(np.uint16)
    arrays = [rng.integers(0, 65536, (23, 17), np.uint16), smooth, np.zeros((1, 1), np.uint16)]
    files = [filtered(array, kind) for array in arrays for kind in range(5)]
    for found, array in zip(node(DECODE, files), [a for a in arrays for _ in range(5)]):
        assert found[:2] == [array.shape[1], array.shape[0]]
        np.testing.assert_array_equal(np.array(found[2]).reshape(array.shape), array)


def test_what_is_no_map_is_refused_with_words(node):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    whole = filtered(np.zeros((9, 9), np.uint16), 0)
    no, other, cut = node(DECODE, [[1, 2, 3], list(buffer.getvalue()), whole[:60]])
    assert "not a PNG" in no
    assert "not 16-bit grey" in other
    assert isinstance(cut, str)


def filtered(array: np.ndarray, kind: int) -> list[int]:
    """A 16-bit PNG with one filter on every line, its bytes as a list."""
    import zlib

    lines = array.astype(">u2").tobytes()
    stride = array.shape[1] * 2
    raw, above = b"", bytes(stride)
    for y in range(array.shape[0]):
        line = lines[y * stride : (y + 1) * stride]
        raw += bytes([kind]) + bytes(
            (
                line[i]
                - _guess(kind, line[i - 2] if i > 1 else 0, above[i], above[i - 2] if i > 1 else 0)
            )
            % 256
            for i in range(stride)
        )
        above = line
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(0, 2)
    size = array.shape[1].to_bytes(4, "big") + array.shape[0].to_bytes(4, "big")
    PngImagePlugin.putchunk(buffer, b"IHDR", size, b"\x10\0\0\0\0")
    data = zlib.compress(raw)
    PngImagePlugin.putchunk(buffer, b"IDAT", data[:7])
    PngImagePlugin.putchunk(buffer, b"IDAT", data[7:])
    PngImagePlugin.putchunk(buffer, b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(buffer.getvalue()))), array)
    return list(buffer.getvalue())


def _guess(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    near = {left: abs(up - corner), up: abs(left - corner), corner: abs(left + up - 2 * corner)}
    best = min(near.values())
    return next(value for value in (left, up, corner) if near[value] == best)


OUTLINE = """
import { outlineOf, regionsOf, fieldOf } from "PAGE/heat.js";
import { readFileSync } from "node:fs";
const { width, height, values, threshold } = JSON.parse(readFileSync(0, "utf8"));
const field = fieldOf({ width, height, values: Uint16Array.from(values) });
console.log(JSON.stringify({ outline: outlineOf(field, threshold), regions: regionsOf(field, threshold),
  size: [field.width, field.height] }));
"""


def test_regions_in_the_browser_are_the_servers(node):
    from scipy.ndimage import gaussian_filter

    from mrad.maps import regions

    rng = np.random.default_rng(1)
    noise = gaussian_filter(rng.random((90, 120)), 3)
    steps = np.round((noise - noise.min()) / np.ptp(noise) * 65535).astype(np.uint16)
    given = {"width": 120, "height": 90, "values": steps.ravel().tolist(), "threshold": 0.6}
    found = node(OUTLINE, given)
    expected = regions((steps / 65535).astype(np.float32), 0.6)
    assert [tuple(r["box"]) for r in found["regions"]] == [r.box for r in expected]
    assert [r["area"] for r in found["regions"]] == [r.area for r in expected]
    segments = np.array(found["outline"]).reshape(-1, 2, 2)
    _, counts = np.unique(segments.reshape(-1, 2).round(6), axis=0, return_counts=True)
    assert (counts % 2 == 0).all(), "every outline is closed"


def test_large_maps_are_drawn_smaller(node):
    given = {"width": 2800, "height": 10, "values": [7] * 28000, "threshold": 0.5}
    assert node(OUTLINE, given)["size"] == [1400, 5]
