"""A memory of two products on the page: one is chosen, asked alone, and taught."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mrad_service.app import create_app
from mrad_service.settings import Settings
from selenium.webdriver.support.ui import Select

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.memory.store import save_calibration
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.own import score_own


@pytest.fixture
def page(
    open_page: Any, serve: Any, tiny_encoder: Encoder, make_image: Any, tmp_path: Path
) -> Iterator[Any]:
    samples = [
        Sample(make_image(seed, size)[0], False, source=f"{name}-{seed}.png", object_name=name)
        for name, size in (("caps", (96, 64)), ("nuts", (64, 96)))
        for seed in range(6)
    ]
    bank = MemoryBank.from_samples(tiny_encoder, samples).save(tmp_path / "both")
    detector = Detector(tiny_encoder, bank)
    made = calibrate(detector, score_own(detector, thorough=True), target_fpr=0.2)
    save_calibration(made.into(bank), tmp_path / "both")
    settings = Settings(bank=tmp_path / "both", auth="off", batch_wait=0.0)
    with serve(create_app(settings, encoder_of=lambda *_: tiny_encoder)) as url:
        yield open_page(url)


def asked(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}/{path}") as answer:
        return json.load(answer)


def raw_score(page: Any) -> str:
    return page.run(
        "return [...document.querySelectorAll('#verdict dt')].find(d => d.textContent === 'Raw score')"
        ".nextElementSibling.textContent"
    )


def test_the_chosen_product_judges_and_learns_alone(
    page: Any, images: Callable[..., list[Path]]
) -> None:
    page.sees("bank", "12 images in the memory")
    choice = Select(page["object"])
    assert [option.text for option in choice.options] == ["All products", "caps", "nuts"]
    first, second = images(2)
    page.give(first, second)
    page.sees("verdict", "Raw values")
    by_all = raw_score(page)

    choice.select_by_visible_text("nuts")
    page.sees("bank", "6 images of nuts in the memory")
    page.until(lambda: raw_score(page) != by_all, "the image in view is judged again")
    page.settled()
    assert "by other images of the memory" in page.all("#queue li")[1].text
    page["score-again"].click()
    page.settled()
    assert "by other images" not in page["queue"].text
    part = asked(page.url, "v1/bank?object=nuts")
    assert page.run("return document.getElementById('threshold-out').textContent").startswith(
        f"{part['pixel_threshold']:.4f}"
    ), "limits are the product's own"

    page["fine"].click()
    page.sees("bank", "7 images of nuts in the memory")
    page.settled()
    page.sees("changed", "By all products together, not by nuts alone:")
    Select(page["object"]).select_by_visible_text("caps")
    page.sees("bank", "6 images of caps in the memory")
    page.settled()
    assert not page["changed"].is_displayed(), "its verdict is not the one that is shown"
    Select(page["object"]).select_by_visible_text("nuts")
    page.sees("bank", "7 images of nuts in the memory")
    taught = asked(page.url, "v1/memory/entries?limit=100")["entries"]
    assert [e["object_name"] for e in taught if e["source"] == first.name] == ["nuts"]

    page.driver.refresh()
    page.sees("bank", "7 images of nuts in the memory")
    assert page.run("return document.getElementById('object').value") == "nuts"
    Select(page["object"]).select_by_visible_text("All products")
    page.sees("bank", "13 images in the memory")
    assert page.errors() == []


def test_the_request_carries_the_product(page: Any, images: Callable[..., list[Path]]) -> None:
    page.sees("bank", "12 images in the memory")
    page.run(
        "window.sent = []; const send = window.fetch;"
        "window.fetch = (address, options = {}) => { if (options.body instanceof FormData)"
        " window.sent.push(options.body.get('object')); return send(address, options); }"
    )
    (path,) = images(1)
    page.give(path)
    Select(page["object"]).select_by_visible_text("caps")
    page.until(lambda: page.run("return window.sent.length") == 2, "judged twice")
    assert page.run("return window.sent") == [None, "caps"]


def test_one_product_needs_no_choice(open_page: Any, serve: Any, make_calibrated_app: Any) -> None:
    with serve(make_calibrated_app()) as url:
        page = open_page(url)
        page.sees("bank", "images in the memory")
        assert not page["object-box"].is_displayed()
