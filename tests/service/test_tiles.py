"""Large images on the server: tiles share batches, regions of interest and parts by request and bank."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrad import Detector, MemoryBank
from mrad.images.align import Reference
from mrad.images.layout import Layout
from mrad.images.regions import Area, parse_parts
from mrad.images.tiles import Tiling
from tests.plates import LEFT, RIGHT, SIZE, moved, plate

LAYOUT = Layout(Tiling(96, 0.25))


@pytest.fixture(scope="module")
def tiled(tiny_encoder, tiny_samples) -> MemoryBank:
    """The tiny samples, cut into tiles."""
    return MemoryBank.from_samples(tiny_encoder, tiny_samples, layout=LAYOUT)


@pytest.fixture
def tiled_path(tiled, tmp_path: Path) -> Path:
    tiled.save(tmp_path / "tiled")
    return tmp_path / "tiled"


def score(client, *files: bytes, **options) -> list[dict]:
    parts = [("images", (f"{i}.png", data)) for i, data in enumerate(files)]
    answer = client.post("/v1/score", files=parts, data=options)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def test_an_image_is_judged_as_by_the_library_whatever_shares_its_batches(
    connect, tiled_path, tiled, tiny_encoder, png, make_image
):
    client = connect(bank=tiled_path, max_batch=4)
    sizes = [(300, 200), (80, 64), (500, 96), (96, 96)]
    results = score(
        client, *(png(i, size, True) for i, size in enumerate(sizes)),
        map="npy", evidence=1, fields="score,peak_box,map,evidence,tiles",
    )  # fmt: skip
    detector = Detector(tiny_encoder, tiled)
    for seed, (size, result) in enumerate(zip(sizes, results)):
        (wanted,) = detector.predict([make_image(seed, size, True)[0]], evidence=1)
        assert result["score"] == pytest.approx(wanted.score, abs=1e-6)
        assert tuple(result["peak_box"]) == wanted.peak_box
        assert result["map"]["size"] == list(size)
        assert [tuple(tile["box"]) for tile in result["tiles"]] == [t.box for t in wanted.tiles]
        told = [found["query_box"] and tuple(found["query_box"]) for found in result["evidence"]]
        assert told == [found.query_box for found in wanted.evidence]


def test_a_small_image_does_not_wait_for_all_tiles_of_a_large_one(connect, tiled_path, png):
    """Tiles take turns with others: the small one is done while most tiles still wait."""
    client = connect(bank=tiled_path, max_batch=2, decode_threads=1, finish_threads=1)
    batcher = client.app.state.runtime.batcher
    done: list[int] = []
    settle = batcher._settle

    def watch(item, outcome):
        done.append(item.whole.index)
        settle(item, outcome)

    batcher._settle = watch
    assert len(score(client, png(0, (1200, 1200)), png(1, (40, 30)))) == 2
    assert done == [1, 0]


def test_a_lesson_teaches_every_tile(connect, tiled_path, png, make_image):
    client = connect(bank=tiled_path)
    _, mask = make_image(3, (300, 96), defect=True)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    answer = client.post(
        "/v1/memory/entries",
        files={"image": ("a.png", png(3, (300, 96), True)), "mask": ("m.png", buffer.getvalue())},
        data={"label": "anomalous"},
    )
    assert answer.status_code == 201, answer.text
    bank = client.app.state.runtime.model().bank
    row = bank.row_of(answer.json()["entry"]["entry_id"])
    own = bank.image.entry == row
    assert set(bank.image.tile[own].tolist()) <= set(range(LAYOUT.tiling.count((300, 96))))
    assert set(bank.image.labels[own].tolist()) == {0, 1}
    (result,) = score(client, png(3, (300, 96), True), evidence=1)
    assert result["evidence"][0]["entry_id"] == answer.json()["entry"]["entry_id"]
    assert result["evidence"][0]["tile"] is not None


def test_a_region_of_interest_of_one_request(client, tiny_detector, png, make_image):
    roi = {"size": [200, 100], "box": [0, 0, 100, 100]}
    (result,) = score(client, png(5, (200, 100)), roi=json.dumps(roi), map="npy")
    layout = Layout(None, Area.of_box((0, 0, 100, 100), (200, 100)))
    (wanted,) = tiny_detector.predict([make_image(5, (200, 100))[0]], layout=layout)
    assert result["score"] == pytest.approx(wanted.score, abs=1e-6)
    assert not wanted.anomaly_map[:, 100:].any()
    (whole,) = score(client, png(5, (200, 100)))
    assert whole["score"] != result["score"]


@pytest.mark.parametrize(
    ("roi", "status"),
    [
        ("nonsense", 422),
        ('{"size": [200, 100]}', 422),
        ('{"size": [200, 100], "box": [5, 5, 5, 9]}', 422),
        ('{"size": [200, 100], "polygons": [[[0, 0], [1, 1]]]}', 422),
    ],
)
def test_a_region_that_is_none_is_refused(client, png, roi, status):
    answer = client.post("/v1/score", files=[("images", ("a.png", png()))], data={"roi": roi})
    assert answer.status_code == status, answer.text


def test_a_region_of_another_aspect_spoils_its_own_image_only(client, png):
    roi = json.dumps({"size": [200, 100], "box": [0, 0, 100, 100]})
    good, bad = score(client, png(0, (200, 100)), png(1, (100, 100)), roi=roi)
    assert good["status"] == "ok"
    assert bad["problem"]["code"] == "layout_mismatch"


def test_parts_have_their_own_scores_and_verdicts(connect, tiny_bank, tmp_path, png):
    left = Area.of_box((0, 0, 100, 100), (200, 100), "left")
    right = Area.of_box((100, 0, 200, 100), (200, 100), "right")
    layout = Layout(None, None, (left, right))
    replace(tiny_bank, metadata={"layout": layout.to_json()}).save(tmp_path / "parts")
    client = connect(bank=tmp_path / "parts")
    (result,) = score(client, png(0, (200, 100), True), threshold=0.5)
    parts = {part["name"]: part for part in result["parts"]}
    assert set(parts) == {"left", "right"}
    assert result["score"] == max(part["score"] for part in parts.values())
    assert parts["right"]["box"] == [100, 0, 200, 100]
    for part in parts.values():
        assert part["verdict"] == ("anomalous" if part["score"] >= 0.5 else "normal")


def test_more_pixels_are_taken_where_images_are_cut(connect, tiled_path, bank_path, png):
    limits = {"max_pixels": 10_000, "max_tiled_pixels": 100_000}
    cut, whole = connect(bank=tiled_path, **limits), connect(bank=bank_path, **limits)
    image = png(0, (400, 200))
    assert score(cut, image)[0]["status"] == "ok"
    assert score(whole, image)[0]["problem"]["code"] == "image_too_large"
    assert score(cut, png(0, (400, 300)))[0]["problem"]["code"] == "image_too_large"


def test_an_image_that_was_dropped_leaves_nothing_behind(connect, tiled_path, png):
    client = connect(bank=tiled_path, request_seconds=0.001)
    answer = client.post("/v1/score", files=[("images", ("a.png", png(0, (2000, 2000))))])
    assert answer.status_code == 504
    batcher = client.app.state.runtime.batcher
    assert batcher.drain(60)
    assert not batcher._open
    assert batcher.inside == 0


def test_the_open_inference_protocol_judges_tiles(
    connect, tiled_path, tiled, tiny_encoder, make_image
):
    client = connect(bank=tiled_path)
    image = np.asarray(make_image(2, (300, 200))[0])
    body = {
        "inputs": [{
            "name": "pixels", "datatype": "UINT8", "shape": [1, 200, 300, 3],
            "data": image.ravel().tolist(),
        }],
        "outputs": [{"name": "score"}],
    }  # fmt: skip
    answer = client.post("/v2/models/tiled/infer", json=body)
    assert answer.status_code == 200, answer.text
    (wanted,) = Detector(tiny_encoder, tiled).predict([Image.fromarray(image)])
    assert answer.json()["outputs"][0]["data"][0] == pytest.approx(wanted.score, abs=1e-6)


def test_parts_of_one_request_have_their_own_scores_and_verdicts(client, tiny_detector, png):
    parts = {
        "size": [200, 100],
        "parts": {
            "left": {"box": [0, 0, 100, 100]},
            "right": {"polygons": [[[110, 0], [200, 0], [200, 100]]]},
        },
    }
    (result,) = score(client, png(5, (200, 100), True), parts=json.dumps(parts), threshold=0.5)
    layout = Layout(None, None, parse_parts(parts))
    image = Image.open(io.BytesIO(png(5, (200, 100), True)))
    (wanted,) = tiny_detector.predict([image], layout=layout)
    found = {part["name"]: part for part in result["parts"]}
    for part in wanted.parts:
        assert found[part.name]["score"] == pytest.approx(part.score, abs=1e-6)
        assert found[part.name]["verdict"] == ("anomalous" if part.score >= 0.5 else "normal")
    assert result["score"] == pytest.approx(max(part.score for part in wanted.parts), abs=1e-6)
    body = {
        "images": [base64.b64encode(png(5, (200, 100), True)).decode()],
        "parts": parts, "roi": {"size": [200, 100], "box": [0, 0, 150, 100]},
    }  # fmt: skip
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    assert [part["name"] for part in answer.json()["results"][0]["parts"]] == ["left", "right"]


@pytest.mark.parametrize(
    "parts", ["{}", '{"size": [9, 9], "parts": {}}', '{"size": [9, 9], "parts": {"a": {}}}', "x"]
)
def test_parts_that_are_none_are_refused(client, png, parts):
    answer = client.post("/v1/score", files=[("images", ("a.png", png()))], data={"parts": parts})
    assert answer.status_code == 422, answer.text


def test_a_coarse_look_at_all_then_a_closer_one_as_by_the_library(
    connect, tiled_path, tiled, tiny_encoder, png, make_image
):
    """What was not looked at closely is said in the answer, and dark in an overlay."""
    client = connect(bank=tiled_path, max_batch=4)
    asked = {"map": "npy", "fields": "score,map,tiles,peak_box", "tile_closely": 0.2}
    result, small = score(client, png(3, (400, 300), True), png(4, (80, 64)), **asked)
    detector = Detector(tiny_encoder, tiled)
    layout = LAYOUT.looked_at_closely(0.2)
    (wanted,) = detector.predict([make_image(3, (400, 300), True)[0]], layout=layout)
    assert result["score"] == pytest.approx(wanted.score, abs=1e-6)
    assert tuple(result["peak_box"]) == wanted.peak_box
    assert [tile["closely"] for tile in result["tiles"]] == [t.closely for t in wanted.tiles]
    assert any(text.startswith("looked_at_coarsely: ") for text in result["warnings"])
    assert "warnings" not in small, "it is one tile"
    dark = {}
    for share in (0.2, 1.0):
        asked = {"map": "overlay", "fields": "map", "tile_closely": share}
        (shown,) = score(client, png(3, (400, 300), True), **asked)
        data = io.BytesIO(base64.b64decode(shown["map"]["data"]))
        dark[share] = np.asarray(Image.open(data))
    unseen = wanted.unseen((300, 400))
    assert (dark[0.2][unseen].mean() < 0.5 * dark[1.0][unseen].mean()).all()


@pytest.mark.parametrize("share", ["0", "1.5", "x"])
def test_a_share_of_tiles_that_is_none_is_refused(connect, tiled_path, png, share):
    files = [("images", ("a.png", png()))]
    answer = connect(bank=tiled_path).post("/v1/score", files=files, data={"tile_closely": share})
    assert answer.status_code == 422


def test_a_share_of_tiles_needs_tiles(client, png):
    files = [("images", ("a.png", png()))]
    answer = client.post("/v1/score", files=files, data={"tile_closely": 0.5})
    assert (answer.status_code, "--tile" in answer.json()["detail"]) == (422, True)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_parts_that_move_are_judged_where_they_are(connect, tiny_bank, tiny_encoder, tmp_path):
    boxes = {"left": LEFT, "right": RIGHT}
    areas = tuple(Area.of_box(box, SIZE, name) for name, box in boxes.items())
    layout = Layout(Tiling(100), None, areas, Reference.of(plate()))
    bank = replace(tiny_bank, metadata={"layout": layout.to_json()})
    bank.save(tmp_path / "aligned")
    client = connect(bank=tmp_path / "aligned")
    picture = moved(plate(defect=True), (30, -20), 8.0)
    (result,) = score(client, encoded(picture), map="npy", fields="score,parts,map,peak_box")
    (wanted,) = Detector(tiny_encoder, bank).predict([picture])
    assert result["score"] == pytest.approx(wanted.score, abs=1e-6)
    assert tuple(result["peak_box"]) == wanted.peak_box
    told = [tuple(part["box"]) for part in result["parts"]]
    assert told == [part.box for part in wanted.parts] != [LEFT, RIGHT]
    parts = {"size": SIZE, "parts": {"left": {"box": LEFT}}}
    for align in (True, False):
        given = json.dumps(parts | {"align": align})
        (own,) = score(client, encoded(picture), parts=given, fields="parts")
        assert (tuple(own["parts"][0]["box"]) != LEFT) is align
    (lost,) = score(client, encoded(plate(5)), fields="score")
    assert any(text.startswith("not_aligned") for text in lost["warnings"])


def test_a_lesson_that_cannot_be_aligned_is_refused(connect, tiny_bank, tmp_path):
    """What a memory learned of the wrong places would be held for the part for ever."""
    areas = (Area.of_box(LEFT, SIZE, "left"),)
    layout = Layout(None, None, areas, Reference.of(plate()))
    replace(tiny_bank, metadata={"layout": layout.to_json()}).save(tmp_path / "aligned")
    client = connect(bank=tmp_path / "aligned")

    def teach(picture: Image.Image):
        files = {"image": ("a.png", encoded(picture))}
        return client.post("/v1/memory/entries", files=files, data={"label": "normal"})

    before = client.get("/v1/bank").json()["entries"]
    refused = teach(plate(5))
    assert (refused.status_code, refused.json()["code"]) == (422, "layout_mismatch")
    assert "nothing is learned" in refused.json()["detail"]
    assert "could not be aligned" in refused.json()["detail"]
    assert client.get("/v1/bank").json()["entries"] == before
    assert teach(moved(plate(), (12, 7))).status_code == 201
    assert client.get("/v1/bank").json()["entries"] == before + 1


def test_a_request_cannot_align_where_the_bank_does_not(client, png):
    parts = {"size": [200, 100], "align": True, "parts": {"a": {"box": [0, 0, 100, 100]}}}
    files = [("images", ("a.png", png(5, (200, 100))))]
    answer = client.post("/v1/score", files=files, data={"parts": json.dumps(parts)})
    assert (answer.status_code, "reference picture" in answer.json()["detail"]) == (422, True)
