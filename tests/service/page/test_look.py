"""Looking nearer at a large picture, its tiles, and judging a region of it alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mrad_service.app import create_app
from mrad_service.settings import Settings
from PIL import Image

from mrad import MemoryBank
from mrad.images.layout import Layout
from mrad.images.regions import read_roi
from mrad.images.tiles import Tiling

SIDE = 1000
SIZE = (5000, 4000)


@pytest.fixture(scope="module")
def large(tmp_path_factory, make_image) -> Path:
    """20 megapixels: squares of 8 px in one corner, which the picture as a whole does not show."""
    values = np.asarray(make_image(3, (1250, 1000))[0].resize(SIZE)).copy()
    checks = np.kron(np.indices((50, 50)).sum(axis=0) % 2, np.ones((8, 8))) * 255
    values[:400, :400] = checks[..., None].astype(np.uint8)
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    Image.fromarray(values).save(path, quality=95)
    return path


@pytest.fixture
def coarse(open_page, serve, tiny_encoder, tiny_samples, tmp_path):
    """The same of a memory that looks at a quarter of the tiles closely."""
    layout = Layout(Tiling(SIDE, 0.25, closely=0.25))
    MemoryBank.from_samples(tiny_encoder, tiny_samples, layout=layout).save(tmp_path / "coarse")
    settings = Settings(bank=tmp_path / "coarse", auth="off", batch_wait=0.0)
    with serve(create_app(settings, encoder_of=lambda bank, device: tiny_encoder)) as url:
        yield open_page(url)


@pytest.fixture
def cut(open_page, serve, tiny_encoder, tiny_samples, tmp_path):
    """The page of a server whose memory cuts pictures into tiles."""
    layout = Layout(Tiling(SIDE, 0.25))
    MemoryBank.from_samples(tiny_encoder, tiny_samples, layout=layout).save(tmp_path / "cut")
    settings = Settings(bank=tmp_path / "cut", auth="off", batch_wait=0.0)
    with serve(create_app(settings, encoder_of=lambda bank, device: tiny_encoder)) as url:
        yield open_page(url)


def checksum(page) -> int:
    """Of the picture as drawn."""
    return page.run(
        "const c = document.getElementById('picture'); let sum = 0;"
        "for (const v of c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        " sum = (sum * 31 + v) % 1000003; return sum"
    )


def wheel(page, times: int, x: float, y: float) -> None:
    """Turn the wheel over a place (shares of the picture), and wait for the frame."""
    page.driver.execute_async_script(
        "const [times, x, y, done] = arguments; const c = document.getElementById('picture');"
        "const box = c.getBoundingClientRect();"
        "for (let i = 0; i < times; i++) c.dispatchEvent(new WheelEvent('wheel', {deltaY: -1,"
        "clientX: box.left + x * box.width, clientY: box.top + y * box.height, cancelable: true}));"
        "requestAnimationFrame(() => requestAnimationFrame(() => done(1)))", times, x, y,
    )  # fmt: skip


def test_a_picture_of_20_megapixels_is_looked_at_nearer_in_its_own_pixels(cut, large, tmp_path):
    cut.give(large)
    cut.sees("caption", "region")
    assert "null" not in cut["verdict"].text
    assert cut["tiles-box"].is_displayed()
    assert len(Layout(Tiling(SIDE, 0.25)).places(SIZE).tiles) > 1
    width = cut.run("return document.getElementById('picture').width")
    assert width <= 1400, "the canvas stays small, however large the picture"
    cut.driver.save_screenshot(str(tmp_path / "tiles.png"))
    with_tiles = checksum(cut)
    cut["tiles"].click()
    cut.until(lambda: checksum(cut) != with_tiles, "the tiles' edges are gone")
    cut.slide("opacity", 0)
    cut.run("document.getElementById('outlines').click()")
    whole = checksum(cut)
    wheel(cut, 20, 0.0, 0.0)
    darkest, brightest = cut.run(
        "const d = document.getElementById('picture').getContext('2d').getImageData(0, 0, 200, 200)"
        ".data.filter((_, i) => i % 4 === 0); return [Math.min(...d), Math.max(...d)]"
    )
    assert darkest < 30, "black squares are told from"
    assert brightest > 225, "white ones"
    cut.driver.save_screenshot(str(tmp_path / "near.png"))
    cut["fit"].click()
    cut.until(lambda: checksum(cut) == whole, "all of it is seen again")
    assert cut.errors() == []


def test_a_region_drawn_on_the_page_is_judged_alone_and_saved(page, images, tmp_path):
    page.give(*images(1, defect=True))
    page.sees("caption", "at or above")
    page.run(
        "const real = window.fetch; window.sent = []; window.fetch = (path, given) => {"
        "if (given?.body?.get?.('images')) window.sent.push(given.body.get('roi'));"
        "return real(path, given); }"
    )
    before = page.pixels()
    page["region"].click()
    page.run(
        "const c = document.getElementById('picture'), box = c.getBoundingClientRect();"
        "for (const [x, y] of [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]) c.dispatchEvent(new PointerEvent("
        "'pointerdown', {clientX: box.left + x * box.width, clientY: box.top + y * box.height}));"
        "c.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))"
    )
    page.until(lambda: page.run("return window.sent.length") == 1, "it is judged again")
    page.settled()
    sent = json.loads(page.run("return window.sent[0]"))
    assert sent["size"] == [160, 128]
    corners = [[0, 0], [80, 0], [80, 128], [0, 128]]
    np.testing.assert_allclose(sent["polygons"][0], corners, atol=1)
    page.until(lambda: (page.pixels() != before).any(), "the map has changed")
    assert page["region-off"].is_displayed()
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page["region-save"].click()
    saved = tmp_path / "roi.json"
    page.until(lambda: saved.exists() and saved.stat().st_size, "the region is saved")
    area = read_roi(saved)  # as `mrad build --roi` reads it
    assert area.size == (160, 128)
    np.testing.assert_allclose(area.polygons[0], corners, atol=1)
    assert "mrad build" in page["look-hint"].text
    page["region-off"].click()
    page.until(lambda: page.run("return window.sent.length") == 2, "all of it is judged again")
    page.settled()
    assert page.run("return window.sent[1]") is None
    assert not page["region-save"].is_displayed()
    assert page.errors() == []


def test_what_was_looked_at_coarsely_only_is_dark_and_said(coarse, large):
    coarse.give(large)
    coarse.sees("verdict", "looked at coarsely only")
    coarse["tiles"].click()
    coarse.run("document.getElementById('outlines').click()")
    coarse.slide("opacity", 0)
    dark, light = coarse.run(
        "const c = document.getElementById('picture');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const level = (x, y) => d[4 * (Math.floor(y * c.height) * c.width + Math.floor(x * c.width))];"
        "const all = []; for (let y = .05; y < 1; y += .1) for (let x = .05; x < 1; x += .1)"
        " all.push(level(x, y)); all.sort((a, b) => a - b); return [all[20], all[95]]"
    )
    assert dark < 0.6 * light
    assert coarse.errors() == []
