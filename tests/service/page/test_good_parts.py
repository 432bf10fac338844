"""A memory of good parts alone on the page: a verdict, and the nearest good spot framed in its picture."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest
from mrad_service.app import create_app
from mrad_service.routes.memory import thumbnail_of
from mrad_service.settings import Settings
from PIL import Image

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.demo import FOLDER
from mrad.images.reader import load_image
from mrad.memory.store import save_calibration
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.own import score_own

BOARDS = sorted((FOLDER / "memory" / "good").glob("*.png"))[:10]
WIDE = (640, 400)
"""Of every picture here, so that what is drawn on a square shows whether it was thought of."""


@pytest.fixture
def boards(tmp_path: Path) -> list[Path]:
    """Good boards, cut to `WIDE`."""
    paths = []
    for path in BOARDS:
        paths.append(tmp_path / path.name)
        load_image(path).crop((0, 0, *WIDE)).save(paths[-1])
    return paths


@pytest.fixture
def page(open_page, serve, mini_encoder: Encoder, boards: list[Path], tmp_path: Path):
    samples = [Sample(path, False, source=path.name) for path in boards[:8]]
    bank = MemoryBank.from_samples(mini_encoder, samples)
    small = (thumbnail_of(load_image(path)) for path in boards[:8])
    bank.thumbnails.update(zip((entry.entry_id for entry in bank.entries), small))
    bank = bank.save(tmp_path / "good_only")
    detector = Detector(mini_encoder, bank)
    save_calibration(
        calibrate(detector, score_own(detector, thorough=True)).into(bank), tmp_path / "good_only"
    )
    settings = Settings(bank=tmp_path / "good_only", auth="off", batch_wait=0.0)
    with serve(create_app(settings, encoder_of=lambda *_: mini_encoder)) as url:
        yield open_page(url)


def test_the_verdict_and_the_nearest_good_spot(page, boards: list[Path], tmp_path: Path) -> None:
    defect = sorted((FOLDER / "query" / "defect").glob("*.png"))[0]
    load_image(defect).crop((0, 0, *WIDE)).save(tmp_path / "defect.png")
    page.sees("bank", "8 images in the memory")
    page.give(boards[0], tmp_path / "defect.png")
    page.sees("verdict", "Score, 0 to 100")
    assert "Good parts as unusual" in page["verdict"].text
    assert "Probability" not in page["verdict"].text, "nobody has seen a defect"
    page.sees("evidence", "the framed spot of it")
    spots = page.all("#evidence .framed")
    assert len(spots) == 3
    body = {"images": [_base64(boards[0])], "evidence": 3}
    asked = urllib.request.Request(
        f"{page.url}/v1/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        (result,) = json.load(answer)["results"]
    told = [one for one in result["evidence"] if one["level"] == "patch"]
    assert told[0]["box"] == result["peak_box"], "a picture of the memory finds its own patch"
    for one, framed in zip(told, spots):
        frame, spot = page.run(
            "return [arguments[0], arguments[0].querySelector('.spot')].map((e) => {"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]})",
            framed,
        )
        side = frame[2]
        assert frame[3] == pytest.approx(side, abs=1), "the picture stands in a square"
        left, top, right, _ = one["box"]
        assert spot[0] - frame[0] == pytest.approx(side * left / WIDE[0], abs=1.5)
        above = (WIDE[0] - WIDE[1]) / 2  # the picture lies in the middle of the square
        assert spot[1] - frame[1] == pytest.approx(side * (top + above) / WIDE[0], abs=1.5)
        assert spot[2] == pytest.approx(max(9, side * (right - left) / WIDE[0]), abs=1.5)
    if "MRAD_SCREENSHOT" in os.environ:
        page.all("#queue li button")[1].click()
        page.sees("stage-title", "defect.png")
        page.driver.save_screenshot(os.environ["MRAD_SCREENSHOT"])
    assert page.errors() == []


def test_a_good_part_taught_here_is_known_at_once(page, boards: list[Path]) -> None:
    page.give(boards[9])
    page.sees("verdict", "Score, 0 to 100")
    before = float(page.run("return document.querySelector('#verdict dd').textContent"))
    page["fine"].click()
    page.sees("bank", "9 images in the memory")
    page.settled()
    page.until(
        lambda: (
            float(page.run("return document.querySelector('#verdict dd').textContent")) < before
        ),
        "its score falls",
    )


def _base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def test_an_anomalous_image_with_nothing_outlined_has_its_strongest_place_framed(
    page, tmp_path: Path
) -> None:
    Image.effect_noise(WIDE, 90).save(tmp_path / "defect.png")
    page.sees("bank", "8 images in the memory")
    page.give(tmp_path / "defect.png")
    page.sees("verdict", "Anomalous")
    left, top, right, bottom = _peak(page.url, tmp_path / "defect.png")
    page.run(
        "const s = document.getElementById('threshold'); s.max = 1; s.value = 1;"
        "s.dispatchEvent(new Event('input'))"
    )
    place = f"{(left + right) // 2}, {(top + bottom) // 2}"
    page.sees("caption", f"the strongest place, at {place}, is framed")
    colour = page.run(
        "const c = document.getElementById('picture');"
        "return [...c.getContext('2d').getImageData(arguments[0] * c.width / 640,"
        "arguments[1] * c.height / 400, 1, 1).data]",
        left,
        (top + bottom) // 2,
    )
    assert colour[2] > 200, "the frame is drawn"
    assert colour[0] < 160


def _peak(url: str, path: Path) -> list[int]:
    body = {"images": [_base64(path)], "fields": ["peak_box"]}
    asked = urllib.request.Request(
        f"{url}/v1/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        found: list[int] = json.load(answer)["results"][0]["peak_box"]
    return found
