"""The memory changes while the page is open: here, in another tab, by a program."""

from __future__ import annotations

import httpx

HOLD = """
    const real = window.fetch; window.let_go = () => {}; window.held = 0; window.asked = 0;
    window.fetch = async (path, ...rest) => {
        const answer = await real(path, ...rest);
        if (path === 'v1/bank') window.asked += 1;
        if (path === arguments[0]) {
            window.held += 1;
            if (window.held === arguments[1]) await new Promise((done) => { window.let_go = done; });
        }
        return answer;
    };
"""


def kinds(page) -> list[str]:
    return [row.get_attribute("data-kind") for row in page.all("#queue li")]


def test_what_is_judged_while_a_lesson_is_learned_is_outdated(page, images):
    """Its answer comes after the lesson and is of the memory before it."""
    first, second = images(2)
    page.give(first)
    page.run(HOLD, "v1/score", 1)
    page["files"].send_keys(str(second))
    page.until(lambda: page.run("return window.held") == 1, "the second is judged")
    page.all("#queue button")[0].click()
    page["fine"].click()
    page.sees("changed", "Learned as fine")
    page.run("window.let_go()")
    page.until(lambda: kinds(page)[1] == "stale", "outdated as soon as it is there")
    assert "before the last lesson" in page.all("#queue li")[1].text
    assert page["score-again"].is_displayed()
    page["score-again"].click()
    page.settled()
    assert "stale" not in kinds(page)
    page.until(lambda: not page["score-again"].is_displayed(), "nothing is left to judge again")


def test_who_moves_on_while_a_lesson_is_learned_sees_no_old_verdict(page, images):
    page.give(*images(2))
    page.run(HOLD, "v1/memory/entries", 1)
    page["fine"].click()
    page.until(lambda: page.run("return window.held") == 1, "the lesson is learned")
    page.all("#queue button")[1].click()
    assert not page["fine"].is_enabled(), "one lesson at a time"
    page.run("window.let_go()")
    page.sees("teach-note", "good-60.png: Learned as fine")
    page.settled()
    page.until(lambda: "stale" not in kinds(page), "both are judged by the memory of now")
    assert page["fine"].is_enabled()


def test_a_memory_that_was_changed_elsewhere_is_noticed(page, images):
    """Another tab, a program, a restart with another memory: at the next look, or the next answer."""
    page.give(*images(2))
    page.sees("bank", "6 images in the memory")
    with images(1, first=90)[0].open("rb") as file:
        url = f"{page.url.rstrip('/')}/v1/memory/entries"
        httpx.post(url, data={"label": "normal"}, files={"image": file}).raise_for_status()
    page.run("window.dispatchEvent(new Event('focus'))")
    page.sees("bank", "7 images in the memory")
    page.settled()
    assert kinds(page)[0] in ("normal", "anomalous"), "the image in view is judged again"
    assert kinds(page)[1] == "stale"
    assert "before the memory changed" in page.all("#queue li")[1].text


def test_an_answer_by_another_threshold_shows_that_the_memory_has_changed(page, images):
    page.give(*images(1))
    page.run("""
        const real = window.fetch;
        window.fetch = async (path, ...rest) => {
            const answer = await real(path, ...rest);
            if (path !== 'v1/bank') return answer;
            return new Response(JSON.stringify({...await answer.json(), entries: 60, pixel_threshold: 0.25}));
        }""")
    page.run("""
        const before = window.fetch;
        window.fetch = async (path, ...rest) => {
            const answer = await before(path, ...rest);
            if (path !== 'v1/score') return answer;
            const body = await answer.json();
            body.results[0].threshold = 0.123;
            return new Response(JSON.stringify(body));
        }""")
    page.give(*images(1, first=70))
    page.sees("bank", "60 images in the memory")
    page.sees("threshold-out", "0.2500 (calibrated)")


def test_files_that_are_left_out_are_named(page, images, tmp_path):
    for name in ("notes.txt", "list.csv"):
        (tmp_path / name).write_text("x")
    good = images(1)[0]
    page["files"].send_keys(
        "\n".join(map(str, (good, tmp_path / "notes.txt", tmp_path / "list.csv")))
    )
    page.sees("banner", "2 files left out, as no image by name: notes.txt, list.csv.")
    page.settled()
    assert len(page.all("#queue li")) == 1
    page.give(*images(1, first=70))
    assert not page["banner"].is_displayed()
