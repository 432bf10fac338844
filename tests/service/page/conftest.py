"""Real Chromium on a real server with the tiny encoder and a calibrated memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from mrad_service.app import create_app
from mrad_service.routes.memory import thumbnail_of
from mrad_service.settings import Settings
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from mrad import Detector, Encoder, MemoryBank
from mrad.thresholds.calibrate import Scored, calibrate

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1440,1100",
)  # fmt: skip
PATIENCE = 60
"""Seconds; the machine may be busy."""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One Chromium for all tests, each of which opens the page again."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield made
    made.quit()


class Page:
    """The page as a person has it before them."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url
        driver.get(url)
        driver.execute_script("sessionStorage.clear()")
        driver.get_log("browser")
        driver.get(url)

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[Any]:
        """Every element of a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """JavaScript's answer."""
        return self.driver.execute_script(script, *arguments)

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """Wait for it."""
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: met(), what)

    def sees(self, name: str, text: str) -> None:
        """Wait until an element shows a text."""
        try:
            self.until(lambda: text in self[name].text, f"{text!r} in #{name}")
        except Exception as error:
            raise AssertionError(f"{name} shows {self[name].text!r}, not {text!r}") from error

    def give(self, *files: Path) -> None:
        """Choose files in the picker and wait until all are judged or refused."""
        before = len(self.all("#queue li"))
        self["files"].send_keys("\n".join(map(str, files)))
        self.until(lambda: len(self.all("#queue li")) == before + len(files), "all are listed")
        self.settled()

    def settled(self) -> None:
        """Nothing waits or runs."""
        busy = "#queue [data-kind=waiting], #queue [data-kind=running]"
        self.until(lambda: not self.all(busy), "everything is judged")

    def slide(self, name: str, value: float) -> None:
        """Move a slider, as a hand does."""
        self.run(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))", name, value,
        )  # fmt: skip

    def pixels(self) -> np.ndarray:
        """The picture as drawn: [height, width, 4]."""
        width, height, data = self.run(
            "const c = document.getElementById('picture'); const d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; return [c.width, c.height, [...d]]"
        )
        return np.array(data, np.uint8).reshape(height, width, 4)

    def errors(self) -> list[str]:
        """What the browser complained of: scripts, styles, refused sources."""
        lines = self.driver.get_log("browser")
        return [line["message"] for line in lines if line["level"] == "SEVERE"]


@pytest.fixture
def images(tmp_path: Path, png: Callable[..., bytes]) -> Callable[..., list[Path]]:
    """`images(3, defect=True)`: that many files of 160 x 128."""

    def make(count: int, first: int = 60, defect: bool = False) -> list[Path]:
        folder = tmp_path / "camera"
        folder.mkdir(exist_ok=True)
        paths = []
        for seed in range(first, first + count):
            paths.append(folder / f"{'bad' if defect else 'good'}-{seed}.png")
            paths[-1].write_bytes(png(seed, (160, 128), defect=defect))
        return paths

    return make


@pytest.fixture
def calibrated(
    tmp_path: Path, tiny_bank: MemoryBank, tiny_detector: Detector, tiny_samples: Any,
    make_image: Any,
) -> Path:  # fmt: skip
    """The tiny bank on disk with thumbnails and thresholds from twelve images it has not seen."""
    scored = Scored()
    for seed in range(200, 212):
        image, mask = make_image(seed, (160, 128), defect=seed % 2 == 0)
        (found,) = tiny_detector.predict([image], evidence=1)
        truth = np.zeros((128, 160), bool) if mask is None else np.asarray(mask) > 0
        scored.score.append(found.score)
        scored.anomalous.append(mask is not None)
        scored.own_row.append(-1)
        scored.peak.append(float(found.anomaly_map.max()))
        scored.sketch.append(None)
        scored.similarity_image.append(0.9)
        scored.similarity_patch.append(0.9)
        for part in {True, False} & set(truth.ravel().tolist()):
            scored.pixels.append(found.anomaly_map[truth == part][::97].astype(np.float64))
            scored.pixel_image.append(len(scored.score) - 1)
            scored.pixel_truth.append(part)
            scored.pixel_weight.append(97.0)
    thumbnails = {
        entry.entry_id: thumbnail_of(sample.image)
        for entry, sample in zip(tiny_bank.entries, tiny_samples)
    }
    bank = calibrate(tiny_detector, scored).into(replace(tiny_bank, thumbnails=thumbnails))
    bank.save(tmp_path / "calibrated")
    return tmp_path / "calibrated"


@pytest.fixture
def make_calibrated_app(calibrated: Path, tiny_encoder: Encoder) -> Callable[..., FastAPI]:
    """`make_calibrated_app(**settings)`."""

    def make(**given: Any) -> FastAPI:
        settings = {"bank": calibrated, "auth": "off", "batch_wait": 0.0} | given
        return create_app(Settings(**settings), encoder_of=lambda bank, device: tiny_encoder)

    return make


@pytest.fixture
def page(driver: Any, serve: Any, make_calibrated_app: Any) -> Iterator[Page]:
    """The page of a server without keys."""
    with serve(make_calibrated_app()) as url:
        yield Page(driver, url)


@pytest.fixture
def open_page(driver: Any) -> Callable[[str], Page]:
    """`open_page(url)`, for a server with settings of its own."""
    return lambda url: Page(driver, url)
