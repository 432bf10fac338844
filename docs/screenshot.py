"""docs/images/page.png: the page on the demo's memory, in Chromium.

make demo && python docs/screenshot.py
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
QUERIES = ROOT / "mrad" / "demo" / "deep_pcb" / "query"
OUT = ROOT / "docs" / "images" / "page.png"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1440,1060",
)  # fmt: skip
PATIENCE = 600


@contextmanager
def served(bank: Path) -> Iterator[str]:
    """`mrad serve` on a copy of the bank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("mrad"), "serve", "--no-auth", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(bank, Path(folder) / "boards")
        process = subprocess.Popen([*command, "--bank", copy], stdout=subprocess.DEVNULL)
        try:
            while not answers(url + "health/ready"):
                if process.poll() is not None:
                    raise SystemExit("the server did not start: run make demo first")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str) -> bool:
    """Whether it says 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def shoot(url: str, profile: str) -> bytes:
    """Judge some boards, look at the first defective one."""
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(url)
        files = [*sorted(QUERIES.glob("defect/*"))[:4], *sorted(QUERIES.glob("good/*"))[:3]]
        driver.find_element(By.ID, "files").send_keys("\n".join(map(str, files)))
        busy = "#queue [data-kind=waiting], #queue [data-kind=running]"
        listed = "#queue li"
        WebDriverWait(driver, PATIENCE).until(
            lambda d: (
                len(d.find_elements(By.CSS_SELECTOR, listed)) == len(files)
                and not d.find_elements(By.CSS_SELECTOR, busy)
            )
        )
        time.sleep(2)  # pictures in the list
        return bytes(driver.get_screenshot_as_png())
    finally:
        driver.quit()


def main() -> None:
    """Few colours, so that the file stays small."""
    bank = Path(os.environ.get("MRAD_BANK", ROOT / "demo-output" / "bank"))
    with served(bank) as url, tempfile.TemporaryDirectory() as profile:
        image = Image.open(io.BytesIO(shoot(url, profile))).convert("RGB")
    image.quantize(192, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
