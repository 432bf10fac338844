"""No page is wider than its window, whatever the images are called."""

from __future__ import annotations

import shutil

import pytest

NAMES = {
    "long": "LINE7_station-03_camera-front_" + "0123456789" * 8 + "_batch.png",
    "spaces": ("part 12 of lot " * 8).strip() + ".png",
    "right to left": "صورة القطعة المعدنية رقم " * 2 + "ا" * 30 + ".png",
    "emoji": "📷" * 29 + ".png",
}
WIDTHS = (360, 720, 1024, 1181, 1440, 1920, 2560)


@pytest.fixture
def resize(page):
    def to(width: int) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    yield to
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("kind", NAMES)
def test_the_page_fits_its_window_after_teaching(kind, page, images, tmp_path, resize):
    plain = images(1, defect=True)[0]
    file = tmp_path / NAMES[kind]
    shutil.copy(plain, file)
    page.give(file, *images(1))  # two: the lesson offers "Judge all again"
    page["fine"].click()
    page.sees("teach-note", "Learned as fine")
    page.until(lambda: page["changed"].is_displayed(), "the comparison is shown")
    page["defect"].click()
    assert page["score-again"].is_displayed()
    page["kind"].send_keys("scratch" * 25)
    page["from-regions"].click()
    for width in WIDTHS:
        resize(width)
        wide = page.run(
            "return [document.documentElement.scrollWidth, innerWidth,"
            " [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right"
            " > innerWidth && !e.closest('.unseen') && e.checkVisibility())"
            ".map(e => e.tagName + '.' + e.className + '#' + e.id).slice(0, 5)]"
        )
        assert wide[0] <= wide[1], f"{width} px: {wide}"
