"""Upload, look, teach, undo: in a real browser against a real server."""

from __future__ import annotations

import io
import json
import urllib.request

import numpy as np
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from mrad.thresholds.follow import Flip


def entries(url: str) -> list[dict]:
    with urllib.request.urlopen(f"{url}/v1/memory/entries") as answer:
        return json.load(answer)["entries"]


def test_images_are_judged_and_explained(page, images):
    files = [*images(1), *images(1, defect=True)]
    page.sees("bank", "6 images in the memory")
    page.give(*files)
    first, second = page.all("#queue li")
    assert first.get_attribute("data-kind") in ("normal", "anomalous")
    assert first.find_element("tag name", "button").get_attribute("aria-current") == "true"
    page.sees("verdict", "Score, 0 to 100")
    assert "Limit" in page["verdict"].text
    remembered = page.all("#evidence img")
    assert len(remembered) == 6, "three for the whole image, three for the spot"
    assert all(page.run("return arguments[0].naturalWidth", image) > 50 for image in remembered)
    assert "alike" in page["evidence"].text
    second.find_element("tag name", "button").click()
    page.sees("stage-title", files[1].name)
    page.sees("announce", "2 images judged")
    assert page.errors() == []


def test_the_sliders_act_on_the_map_at_once(page, images):
    file = images(1, defect=True)[0]
    page.give(file)
    page.sees("caption", "at or above")
    page.run("document.getElementById('outlines').click()")
    page.slide("opacity", 0)
    bare = page.pixels()[..., :3]
    original = np.asarray(Image.open(file).convert("RGB"))
    assert np.abs(bare.astype(int) - original).max() <= 2, "at 0 % only the image is seen"
    page.slide("opacity", 100)
    assert np.abs(page.pixels()[..., :3].astype(int) - original).mean() > 10
    slider = page["threshold"]
    low, high = float(slider.get_attribute("min")), float(slider.get_attribute("max"))
    page.slide("threshold", low)
    assert "1 region at or above" in page["caption"].text
    assert "100.0 % of the image" in page["caption"].text
    page.run("document.getElementById('outlines').click()")
    page.slide("threshold", low + 0.8 * (high - low))
    outlined = page.pixels()
    page.slide("threshold", low + 0.6 * (high - low))
    assert (outlined != page.pixels()).any()
    assert "region" in page["picture"].get_attribute("aria-label")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert float(slider.get_attribute("value")) > low, "the keyboard moves it too"


def test_the_map_on_screen_is_the_servers_map(page, images, tiny_detector):
    """16 bit survive: the value under the threshold's outline is what the server computed."""
    file = images(1, defect=True)[0]
    page.give(file)
    expected = tiny_detector.predict([file])[0].anomaly_map
    values = page.run(
        "return import('/page/png16.js').then(async (m) => {"
        " const form = new FormData(); form.append('map', 'png16');"
        " form.append('images', document.getElementById('files').files[0]"
        "   ?? new Blob([Uint8Array.from(arguments[0])]), 'a.png');"
        " const answer = await (await fetch('v1/score', {method: 'POST', body: form})).json();"
        " const map = await m.decodePng16(m.fromBase64(answer.results[0].map.data));"
        " return [map.width, map.height, [...map.values]]; })",
        list(file.read_bytes()),
    )
    assert values[:2] == [160, 128]
    found = np.array(values[2]).reshape(128, 160) / 65535
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_painted_defect_is_learnt_and_undone(page, images):
    page.give(*images(2, defect=True))
    before = page["verdict"].text
    page["defect"].click()
    brush = page["brush"]
    ActionChains(page.driver).move_to_element(brush).click_and_hold().move_by_offset(
        60, 20
    ).release().perform()
    page.sees("mark-hint", "Marked places are learned")
    page["kind"].send_keys("stain")
    page.all("#teach-mark [type=submit]")[0].click()
    page.sees("changed", "Learned as a defect")
    assert "higher" in page["changed"].text
    assert len(page.all("#changed canvas")) == 2
    page.sees("bank", "7 images in the memory")
    assert page["verdict"].text != before
    assert "stain" in page.all("#evidence .side")[0].text, "it is its own nearest neighbour now"
    newest = entries(page.url)[0]
    assert (newest["label"], newest["defect"]) == ("anomalous", "stain")
    assert page.all("#queue li")[1].text.endswith("before the last lesson")
    assert page.all("#queue li")[1].get_attribute("data-kind") == "stale", "no verdict's colour"
    page["score-again"].click()
    page.settled()
    assert "before the last lesson" not in page["queue"].text
    page.all("#lessons button")[0].click()
    page.sees("changed", "Forgotten")
    page.sees("bank", "6 images in the memory")
    assert page["verdict"].text == before
    assert page.errors() == []


def test_this_is_fine_lowers_the_score(page, images):
    page.give(*images(1))
    page["fine"].click()
    page.sees("changed", "Learned as fine")
    assert "lower" in page["changed"].text
    assert entries(page.url)[0]["label"] == "normal"
    page.sees("lessons", "Good")
    page.sees("verdict", "Recognised: this picture was taught as good")


def test_everything_works_from_the_keyboard(page, images):
    page.give(*images(2, defect=True))
    first = page.all("#queue button")[0]
    first.send_keys(Keys.ARROW_DOWN)
    assert page.driver.switch_to.active_element == page.all("#queue button")[1]
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.sees("stage-title", "bad-61.png")
    page.until(lambda: page["defect"].is_enabled(), "it may be taught")
    page["defect"].send_keys(Keys.ENTER)
    assert page.driver.switch_to.active_element == page["brush"], "focus goes to the brush"
    page["brush"].send_keys(Keys.ARROW_LEFT, Keys.SPACE, *[Keys.ARROW_RIGHT] * 4, Keys.SPACE)
    page.sees("announce", "Not painting")
    page.sees("mark-hint", "Marked places are learned")
    painted = page.run(
        "const c = document.getElementById('brush'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; return d.filter((v, i) => i % 4 == 3 && v).length"
    )
    assert painted > 20
    page["from-regions"].send_keys(Keys.ENTER)
    page["cancel"].send_keys(Keys.ENTER)
    assert page.driver.switch_to.active_element == page["defect"], "and back"
    assert len(entries(page.url)) == 6


def test_the_mask_is_sent_at_the_images_own_size(page, tmp_path, make_image):
    """Larger than what is drawn (1400 px), turned by EXIF: the mask still fits."""
    image, _ = make_image(3, (1900, 500), defect=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    (tmp_path / "turned.jpg").write_bytes(buffer.getvalue())
    page.give(tmp_path / "turned.jpg")
    page["defect"].click()
    ActionChains(page.driver).click(page["brush"]).perform()
    page.all("#teach-mark [type=submit]")[0].click()
    page.sees("changed", "Learned as a defect")
    newest = entries(page.url)[0]
    assert (newest["width"], newest["height"]) == (500, 1900)


def test_a_lesson_says_which_other_verdicts_it_changed(page, images, monkeypatch):
    def first_image(before, after):
        (entry_id, own), *_ = after.own.items()
        return [Flip(entry_id, own.label, before=0, after=1)]

    monkeypatch.setattr("mrad_service.routes.lessons.flips", first_image)
    page.give(*images(1))
    page["fine"].click()
    page.sees("changed", "This changed 1 other verdict: look")
    assert "False alarms to expect now" in page["changed"].text
    page.all("#changed summary")[0].click()
    page.sees("changed", "Normal → Anomalous")
    link = "document.querySelector('#changed .flips a').href"
    page.until(lambda: page.run(f"return {link}").startswith("blob:"), "its picture is shown")
    assert page.errors() == []


def test_an_old_verdict_is_never_shown_as_one_of_now(page, images):
    page.give(*images(2))
    page["fine"].click()
    page.sees("changed", "No other verdict changed")
    other = page.all("#queue li")[1]
    assert other.get_attribute("data-kind") == "stale"
    other.find_element("tag name", "button").click()
    page.settled()
    assert page.all("#queue li")[1].get_attribute("data-kind") in ("normal", "anomalous")
    assert "before the last lesson" not in page["verdict"].text
