"""Pace, journal, sources, tables, summary: each on its own."""

from __future__ import annotations

import csv
import heapq
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mrad_client import InputError
from mrad_client.batch import Journal, JournalError, Pace, find_items
from mrad_client.batch.names import LONGEST, place
from mrad_client.batch.pictures import overlay
from mrad_client.batch.screen import closing
from mrad_client.batch.sources import not_taken
from mrad_client.batch.summary import SHOWN, Summary
from mrad_client.batch.tables import check_suffix, write_table
from PIL import Image
from rich.console import Console


def simulate(pace: Pace, workers: int, queue: int | None, seconds: float = 200.0) -> list[int]:
    """A server with so many workers of 0.1 s a request, refusing over `queue`; slots over time."""
    rng = np.random.default_rng(0)
    now, slots = 0.0, []
    free = [0.0] * workers
    events: list[tuple[float, float]] = []
    while now < seconds:
        while len(events) < pace.slots:
            start = max(now, heapq.heappop(free))
            end = start + 0.1 * rng.uniform(0.9, 1.1)
            heapq.heappush(free, end)
            heapq.heappush(events, (end, now))
            if queue is not None and len(events) > queue:
                pace.refused(now, now)
                break
        now, _ = heapq.heappop(events)
        pace.done(1, now)
        slots.append(pace.slots)
    return slots[len(slots) // 2 :]


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_pace_finds_what_the_server_can_do(workers: int) -> None:
    later = simulate(Pace(most=64), workers, queue=None)
    assert workers * 0.75 <= np.median(later) <= workers * 2 + 1


def test_pace_gives_way_to_refusals() -> None:
    later = simulate(Pace(most=64), workers=16, queue=6)
    assert np.median(later) <= 7
    assert min(later) >= 1


def test_one_wave_of_refusals_counts_once() -> None:
    pace = Pace(limit=10.0)
    for _ in range(10):
        pace.refused(sent=1.0, now=2.0)
    assert pace.limit == pytest.approx(7.0)
    pace.refused(sent=3.0, now=4.0)
    assert pace.limit == pytest.approx(4.9)


def row(name: str, score: float | None = 0.5, stamp: str = "1:1") -> dict:
    if score is None:
        return {"name": name, "stamp": stamp, "status": "error", "code": "c", "error": "<b>e</b>"}
    return {"name": name, "stamp": stamp, "status": "ok", "score": score, "verdict": "normal"}


def test_journal_remembers_and_the_latest_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {"a": 1}) as journal:
        journal.append([row("x", 0.1), row("y", 0.2)])
    with Journal(path, {"a": 1}) as journal:
        assert journal.has("x", "1:1")
        assert not journal.has("x", "2:2")  # the file changed since
        journal.append([row("x", 0.9, "2:2")])
        assert [(r["name"], r["score"]) for r in journal.rows()] == [("x", 0.9), ("y", 0.2)]


def test_every_torn_tail_is_cut_and_nothing_whole_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {}) as journal:
        journal.append([row("x"), row("ÿ")])
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with Journal(path, {}) as journal:
            journal.append([row("z")])
        with Journal(path, {}) as journal:
            whole = max(0, data[:length].count(b"\n") - (length >= first))
            assert len(journal) == whole + 1


def test_another_runs_journal_is_not_mixed_in(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {"threshold": 0.5}):
        pass
    with pytest.raises(JournalError, match=r"threshold 0.5 → 0.6.*--restart"):
        Journal(tmp_path / "j", {"threshold": 0.6}, hint="Use --restart")


def test_two_runs_cannot_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}), pytest.raises(JournalError, match="in use"):
        Journal(tmp_path / "j", {})


def test_restart_forgets_only_what_nobody_writes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {"a": 1}) as journal:
        journal.append([row("x")])
        with pytest.raises(JournalError, match="in use"):
            Journal(path, {"a": 1}, restart=True)
    with Journal(path, {"a": 1}) as journal:
        assert len(journal) == 1
    with Journal(path, {"a": 2}, restart=True) as journal:
        assert len(journal) == 0
        journal.append([row("y")])
    with Journal(path, {"a": 2}) as journal:
        assert list(journal.rows()) == [row("y")]


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}) as journal:
        journal.append([row("b"), row("a")])
        assert [r["name"] for r in journal.rows()] == ["b", "a"]
        assert [r["name"] for r in journal.rows(["a", "missing", "b"])] == ["a", "b"]


def test_another_question_begins_a_chapter_where_it_may(tmp_path: Path) -> None:
    for threshold in (0.5, 0.6, 0.6):
        with Journal(tmp_path / "j", {"threshold": threshold}, follow=True) as journal:
            journal.append([row(f"{threshold}")])
    assert (tmp_path / "j").read_text().count('"asked"') == 2


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text("my notes\n")
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, {})
    assert path.read_text() == "my notes\n"


def test_sources(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.JPG", "sub/notes.md", "sub/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "m.csv").write_text("id,image\n1,b.png\n2,gone.png\n")
    (tmp_path / "m.tsv").write_text("id\timage\n1\tb.png\n")
    (tmp_path / "m.jsonl").write_text('{"image": "sub/a.JPG"}\n\n')
    (tmp_path / "m.txt").write_text("b.png\n")

    def names(*sources: Path) -> list[str]:
        return [item.name for item in find_items([str(source) for source in sources])]

    assert names(tmp_path) == ["b.png", "sub/a.JPG"]
    assert names(tmp_path / "m.csv") == ["b.png", "gone.png"]
    assert names(tmp_path / "m.tsv") == names(tmp_path / "m.txt") == ["b.png"]
    assert find_items([str(tmp_path / "m.jsonl")])[0].path == tmp_path / "sub/a.JPG"
    assert len(names(tmp_path / "**/*.JPG")) == 1
    assert names(tmp_path / "b.png") == ["b.png"]
    assert names(tmp_path, tmp_path / "b.png", tmp_path / "m.txt") == ["b.png", "sub/a.JPG"]


def test_two_files_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    items = find_items([str(tmp_path / "one"), str(tmp_path / "two")])
    assert len({item.name for item in items}) == 2


def test_brackets_of_an_existing_folder_stand_for_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "photos[1]" / "[/x]"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"")
    for source in (folder, folder / "a.png", folder / "*.png", folder.parent / "**/*.png"):
        assert [item.path for item in find_items([str(source)])] == [folder / "a.png"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "file\na", "no column"),
        ("m.jsonl", "{}\n", "line 1"),
        ("m.jsonl", '{"image": null}\n', "line 1"),
        ("m.txt", "", "no image"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        find_items([str(tmp_path / name)])


def test_tables_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [row("a", 0.25), row('quo"te,d\nname', None)]
    for suffix in ("parquet", "csv", "jsonl"):
        write_table(rows, tmp_path / f"t.{suffix}")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    with (tmp_path / "t.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    objects = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    names = ["a", 'quo"te,d\nname']
    for kind in (table, lines, objects):
        assert [r["name"] for r in kind] == names
    assert table[0]["score"] == 0.25
    assert float(lines[0]["score"]) == 0.25
    assert table[1]["score"] is None
    assert objects[1]["error"] == "<b>e</b>"
    with pytest.raises(InputError, match="suffix"):
        check_suffix(tmp_path / "t.xlsx")


def test_a_spreadsheet_runs_no_file_name(tmp_path: Path) -> None:
    names = ["=1+1.png", "+a", "-a", "@a", "\ta", "\ra", "'a", "a=1", ""]
    write_table([row(name, -0.5) for name in names], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    cells = [line["name"] for line in lines]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert [cell.removeprefix("'") if cell[:1] == "'" else cell for cell in cells] == names
    assert {line["score"] for line in lines} == {"-0.5"}  # a number stays one


def test_names_that_are_no_text_pass_through_journal_and_tables(tmp_path: Path) -> None:
    names = [os.fsdecode(raw) for raw in (b"\xff\xfe.png", b"a\nb.png", "ü😀.png".encode())]
    with Journal(tmp_path / "j", {"of": names[0]}) as journal:
        journal.append(map(row, names))
    with Journal(tmp_path / "j", {"of": names[0]}) as journal:
        assert all(journal.has(name, "1:1") for name in names)
        for suffix in ("parquet", "csv", "jsonl"):
            write_table(journal.rows(), tmp_path / f"t.{suffix}")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [r["name"] for r in table] == ["\\xff\\xfe.png", *names[1:]]
    assert [r["name_base64"] for r in table] == ["//4ucG5n", None, None]
    html = Summary.of(map(row, names)).html(tmp_path / "p", tmp_path)
    assert "a\\nb.png" in html
    html.encode()


def test_pictures_stay_below_their_folder_and_apart(tmp_path: Path) -> None:
    long = "x" * (LONGEST - 4)
    names = [
        "a.png",
        "../a.png",
        "/a.png",
        "b/a.png",
        "../../b/a.png",
        "a.jpg",
        "a\n.png",
        "a_.png",
    ]
    names += [long + "1234", long + "1235", "é" * 127, "\udcff.png", "\udcfe.png"]
    places = [place(tmp_path, name, ".jpg") for name in names]
    assert len(set(places)) == len(names)
    for path in places:
        assert path.resolve().is_relative_to(tmp_path.resolve())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        path.name.encode()
    assert places[0] == tmp_path / "a.png.jpg"


def test_the_summary_counts_and_escapes(tmp_path: Path) -> None:
    many = [row(f"{i}", i / 200) for i in range(100)]
    page = Summary.of([*many, row("<script>", 1.0), row("bad", None)])
    html = page.html(tmp_path / "page.html", tmp_path)
    assert page.total == 102
    assert page.bins()[0][-1] == 1
    assert len(page.worst) == SHOWN
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "&lt;b&gt;e&lt;/b&gt;" in html
    assert html.index("&lt;script&gt;") < html.index("<br>99<")


def test_the_end_of_a_run_names_what_failed_and_all_that_was_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = [row(f"[/{i}].png", None) for i in range(7)]
    console = Console(stderr=True, markup=False)
    written = [Path("r.csv"), Path("photos[/x]")]
    closing(Summary.of([row("a.png", 0.5), *failed]), written, console, console)
    said = capsys.readouterr().err
    assert "8 images: 1 " in said
    assert "7 errors: " in said
    assert said.count(".png: <b>e</b>") == 5
    assert "  [/0].png: " in said
    assert "written: r.csv, photos[/x]" in said


def test_the_spread_is_seen_where_scores_differ_in_the_third_decimal() -> None:
    counts, low, high = Summary.of(row(f"{i}", 0.300 + i / 100_000) for i in range(80)).bins()
    assert (low, high) == (0.300, pytest.approx(0.30079))
    assert min(counts) >= 1
    assert sum(counts) == 80
    assert sum(Summary.of([row("a", 0.5), row("b", 0.5)]).bins()[0]) == 2
    assert sum(Summary.of([]).bins()[0]) == 0


def test_scores_for_people_lead_where_all_have_them(tmp_path: Path) -> None:
    many = [row(f"{i}", 0.3 + i / 1e5) | {"calibrated_score": float(i)} for i in range(100)]
    scaled = Summary.of(many)
    assert scaled.bins()[1:] == (0, 100)
    assert scaled.bins()[0] == [3, 2] * 20
    assert ">99.0</span>" in scaled.html(tmp_path / "p", tmp_path)
    mixed = Summary.of([*many, row("old", 0.5)])
    assert mixed.bins()[1:] == (0.3, 0.5)


def test_overlays_of_one_scale_compare() -> None:
    image = Image.new("RGB", (30, 20), "white")
    calm, hot = np.full((20, 30), 0.41, np.float32), np.full((20, 30), 0.49, np.float32)
    pictures = [np.asarray(overlay(image, values, (0.4, 0.5)), int) for values in (calm, hot)]
    far = [np.abs(picture - 255).max() for picture in pictures]
    assert far[1] > far[0] > 0  # not each spread over its own range
    assert (np.asarray(overlay(image, calm - 0.05, (0.4, 0.5))) == 255).all()
    deep = Image.fromarray(np.full((20, 30), 30_000, np.uint16))
    assert 100 < np.asarray(overlay(deep, calm, (0.9, 1.0))).mean() < 130  # not clipped to white


def test_overlay_is_hot_where_the_map_is() -> None:
    values = np.full((20, 30), 0.4, dtype=np.float32)
    values[5:10, 5:10] = 0.6
    picture = np.asarray(overlay(Image.new("RGB", (30, 20), "white"), values), dtype=int)
    assert picture.shape == (20, 30, 3)
    assert picture[15, 20].min() == 255  # cold: the image itself
    assert picture[7, 7, 2] < 220
    flat = overlay(Image.new("RGB", (30, 20)), np.zeros((20, 30), np.float32))
    assert len(set(flat.getdata())) == 1


def test_a_link_to_nothing_and_a_pipe_are_named(tmp_path: Path) -> None:
    """Nobody judges them, so somebody must hear of it."""
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").symlink_to(tmp_path / "far" / "b.png")
    os.mkfifo(tmp_path / "c.png")
    assert [item.name for item in find_items([str(tmp_path)])] == ["a.png"]
    assert not_taken(tmp_path) == [
        (tmp_path / "b.png", "a link to nothing"),
        (tmp_path / "c.png", "no file but a pipe or device"),
    ]


def test_what_a_run_drew_and_what_is_hidden_is_nobodys_picture(tmp_path: Path) -> None:
    """A second run would judge the heat maps of the first; hidden folders hold thumbnails and waste."""
    for name in (
        "a.png", ".trash/b.png", "scores/overlays/a.png.jpg", "maps/c.png", "heat/a.png.jpg"
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "scores" / "results.journal").write_bytes(b"")
    own = [tmp_path / "heat"]
    assert [item.name for item in find_items([str(tmp_path)], own)] == ["a.png", "maps/c.png"]
    assert not_taken(tmp_path, own) == [
        (tmp_path / ".trash/b.png", "hidden: its name, or its folder's, begins with a dot"),
        (tmp_path / "scores/overlays", "heat maps that a run wrote"),
    ]
    asked_for = find_items([str(tmp_path / "scores" / "overlays"), str(tmp_path / "heat")], own)
    assert len(asked_for) == 2


def test_another_file_of_one_name_size_and_time_is_another(tmp_path: Path) -> None:
    """A camera's pictures are of one size, and a copy keeps the time: this one has not been judged."""
    stamps = []
    for folder in ("monday", "tuesday"):
        path = tmp_path / folder / "0001.bmp"
        path.parent.mkdir()
        path.write_bytes(folder[:6].encode())
        os.utime(path, (1e9, 1e9))
        stamps.append(find_items([str(path.parent)])[0].stamp())
        time.sleep(0.02)  # file systems count in steps
    assert stamps[0] != stamps[1]


@pytest.mark.parametrize(
    "data",
    [
        b"Image;label\nsub\\a.png;good\n",
        "image\tlabel\r\nsub\\a.png\tgood\r\n".encode("utf-16"),
        b"\xef\xbb\xbfIMAGE , label\nsub/a.png,good\n",
    ],
)
def test_tables_as_spreadsheets_of_windows_save_them(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.png").write_bytes(b"x")
    (tmp_path / "list.csv").write_bytes(data)
    (item,) = find_items([str(tmp_path / "list.csv")])
    assert item.path == tmp_path / "sub/a.png"
