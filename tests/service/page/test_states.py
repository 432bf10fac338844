"""What the page says when something is wrong, and how a person gets on from there."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from mrad_service.middleware.auth import KeyFile
from PIL import Image


@pytest.fixture
def keys(tmp_path):
    return KeyFile(tmp_path / "keys.json")


def test_an_unreadable_image_says_what_to_do(page, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(images(1)[0].read_bytes()[:300])
    page.give(tmp_path / "broken.png")
    page.sees("verdict", "Not judged")
    page.sees("verdict", "Open it in an image viewer")
    page.sees("caption", "No map: the image was not judged.")
    page.sees("evidence", "None: the image was not judged.")
    page.give(*images(1))
    assert page.all("#queue li")[1].get_attribute("data-kind") in ("normal", "anomalous")
    said = page["announce"].get_attribute("textContent")
    assert said.startswith("1 image judged"), said
    assert said.endswith("1 could not be judged"), said


def test_a_key_is_asked_for_and_kept_in_this_tab(
    open_page, serve, make_calibrated_app, keys, images
):
    good, reader = keys.add("line", ("write",)), keys.add("viewer", ("score",))
    with serve(make_calibrated_app(auth="keys", api_keys_file=keys.path)) as url:
        page = open_page(url)
        page.until(lambda: page["key-dialog"].is_displayed(), "a key is asked for")
        page["key"].send_keys("mrad_wrong_key")
        page.all("#key-form .primary")[0].click()
        page.sees("key-why", "does not know that key")
        page["key"].clear()
        page["key"].send_keys(good)
        page.all("#key-form .primary")[0].click()
        page.sees("bank", "6 images in the memory")
        page.give(*images(1))
        page.sees("verdict", "Score")
        page.driver.refresh()
        page.sees("bank", "6 images in the memory")
        page.run("sessionStorage.setItem('mrad-api-key', arguments[0])", reader)
        page.give(*images(1))
        page["fine"].click()
        page.sees("teach-note", "scope “write”")


def test_a_file_over_the_limit(open_page, serve, make_calibrated_app, images):
    with serve(make_calibrated_app(max_file_bytes=2_000)) as url:
        page = open_page(url)
        page.give(*images(1))
        page.sees("verdict", "Not judged")
        page.sees("verdict", "Scale the image down")


def test_a_busy_server_is_asked_again(page, images):
    """A 429 with Retry-After: the page says so, waits, and goes on by itself."""
    page.run("""
        const real = window.fetch; let refusals = 1;
        window.fetch = (path, ...rest) => {
            if (path === 'v1/score' && refusals-- > 0) {
                const body = JSON.stringify({code: 'queue_full', detail: 'full', status: 429});
                return Promise.resolve(new Response(body, {status: 429, headers: {'Retry-After': '1'}}));
            }
            return real(path, ...rest);
        }""")
    page["files"].send_keys(str(images(1)[0]))
    page.sees("banner", "The server is busy; trying again in 1 s")
    page.settled()
    page.sees("verdict", "Score")
    page.until(lambda: not page["banner"].is_displayed(), "the notice goes")


def test_a_server_that_went_away_comes_back(open_page, make_calibrated_app, images):
    first, second = images(2)
    with serving(make_calibrated_app()) as port:
        page = open_page(f"http://127.0.0.1:{port}")
        page.give(first)
    page["files"].send_keys(str(second))
    page.sees("banner", "cannot be reached")
    assert page.all("#queue li")[1].get_attribute("data-kind") == "waiting", "nothing is lost"
    with serving(make_calibrated_app(), port):
        page.settled()
        assert page.all("#queue li")[1].get_attribute("data-kind") in ("normal", "anomalous")
        assert not page["banner"].is_displayed()


@contextmanager
def serving(app, port=0):
    """The application on a port of choice; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(timeout=60)


def test_a_read_only_server_offers_no_teaching(open_page, serve, make_calibrated_app, images):
    with serve(make_calibrated_app(writable=False)) as url:
        page = open_page(url)
        page.give(*images(1))
        page.sees("teach-note", "read-only")
        assert not page["fine"].is_displayed()


def test_it_fits_a_phone(page, images):
    page.driver.set_window_size(500, 900)
    try:
        page.give(*images(2))
        width, inner = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= inner, "nothing has to be scrolled sideways"
    finally:
        page.driver.set_window_size(1440, 1100)


def test_a_doubtful_picture_is_said_beside_its_verdict_and_in_the_list(page, tmp_path):
    dim = (np.random.default_rng(0).integers(0, 4096, (128, 160))).astype(np.uint16)
    Image.fromarray(dim).save(tmp_path / "twelve.png")  # 12 bits in 16: the file does not say it
    page.give(tmp_path / "twelve.png")
    page.sees("verdict", "Look before you trust this")
    page.sees("verdict", "the file does not say its depth; 12 bits assumed")
    page.sees("queue", "doubtful picture")


def test_a_thumbnail_and_a_strip_are_said_to_be_unlike_the_memorys_pictures(
    page, tmp_path, make_image
):
    for name, size, text in (
        ("thumb", (3, 3), "give the original, not a thumbnail or a crop"),
        ("long", (400, 60), "it shows something else, or is squeezed otherwise"),
    ):
        make_image(3, size)[0].save(tmp_path / f"{name}.png")
        page.give(tmp_path / f"{name}.png")
        page.all("#queue li button")[-1].click()
        page.sees("verdict", "Look before you trust this")
        page.sees("verdict", text)
    assert page["queue"].text.count("doubtful picture") == 2


@pytest.mark.parametrize(
    ("verdict", "probability", "differs"),
    [
        ("anomalous", 0.2, True),
        ("normal", 0.8, True),
        ("anomalous", 0.8, False),
        (None, 0.8, False),
    ],
)
def test_why_a_verdict_and_its_probability_differ_is_said(page, verdict, probability, differs):
    result = {
        "score": 0.5, "class_score": 0.5, "calibrated_score": 60, "verdict": verdict,
        "threshold": 0.4, "probability": probability, "warnings": [],
    }  # fmt: skip
    shown = page.run(
        "return import('/page/panels.js').then((panels) => {"
        "  panels.showVerdict({state: 'done', name: 'a.png', result: arguments[0]}, {}, []);"
        "  return document.getElementById('verdict').textContent; })",
        result,
    )
    assert "Probability of a defect" in shown
    assert ("supposes as many defects as the calibration had" in shown) == differs
