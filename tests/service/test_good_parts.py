"""A memory of good parts alone, and one of several products, by every door that the service has."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mrad_client import Client
from mrad_client.cli import app as batch
from mrad_client.errors import APIError
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.watch import WatchOptions, watch_folder
from mrad_service.app import create_app
from mrad_service.settings import Settings
from typer.testing import CliRunner

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.demo import FOLDER
from mrad.images.reader import load_image
from mrad.memory.store import save_calibration
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.own import score_own

from .conftest import served

GOOD = sorted((FOLDER / "memory" / "good").glob("*.png"))
QUERIES = {kind: sorted((FOLDER / "query" / kind).glob("*.png")) for kind in ("good", "defect")}
BOARDS, CAPS = GOOD[:12], GOOD[12:20]


def saved(encoder: Encoder, groups: dict[str, list[Path]], path: Path) -> Path:
    """A calibrated bank of good parts alone, with a small copy of each."""
    samples = [
        Sample(file, False, source=file.name, object_name=name)
        for name, files in groups.items()
        for file in files
    ]
    bank = MemoryBank.from_samples(encoder, samples)
    thumbnails = {
        e.entry_id: (FOLDER / "memory" / "good" / e.source).read_bytes() for e in bank.entries
    }
    bank.thumbnails.update(thumbnails)
    bank = bank.save(path)
    detector = Detector(encoder, bank)
    save_calibration(calibrate(detector, score_own(detector, thorough=True)).into(bank), path)
    return path


@pytest.fixture(scope="module")
def bank(mini_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    groups = {"boards": BOARDS, "caps": CAPS, "nut": GOOD[20:21]}
    return saved(mini_encoder, groups, tmp_path_factory.mktemp("good_only") / "bank")


@pytest.fixture(scope="module")
def url(bank: Path, mini_encoder: Encoder) -> Iterator[str]:
    settings = Settings(bank=bank, auth="off", request_seconds=600)
    with served(create_app(settings, encoder_of=lambda *_: mini_encoder)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=600) as made:
        yield made


def test_verdict_scale_and_the_nearest_good_spot(client: Client) -> None:
    held, part = client.bank(), client.bank(object="caps")
    assert part.map_range != held.map_range
    assert part.threshold == pytest.approx(
        client.score_image(QUERIES["good"][0], object="caps").threshold
    )
    assert held.objects == ["boards", "caps", "nut"]
    scores = client.score([*QUERIES["good"], *QUERIES["defect"]], map="png16", evidence=3)
    found = {Path(one.name).name: one for one in scores}
    kinds = {kind: [found[path.name] for path in QUERIES[kind]] for kind in QUERIES}
    assert {one.verdict for one in kinds["good"]} == {"normal"}
    assert "anomalous" in {one.verdict for one in kinds["defect"]}
    least = min(one.score for one in kinds["defect"])
    assert least > max(one.score for one in kinds["good"]), (
        "few parts: scores part, limits are wide"
    )
    for one in scores:
        assert 0 <= one.calibrated_score <= 100
        assert (one.calibrated_score >= 50) == (one.verdict == "anomalous")
        assert 0 < one.p_value <= 1
        assert one.probability is None, "nobody has seen a defect"
        assert one.anomaly_map.shape == (640, 640)
        spots = [e for e in one.evidence if e.level == "patch"]
        assert len({spot.entry_id for spot in spots}) == 3, "each image is named once"
        for spot in spots:
            left, top, right, bottom = spot.box
            width, height = spot.size
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert spot.label == "normal"
            assert spot.image() is not None
        assert all(e.box is None for e in one.evidence if e.level == "image")


def test_the_box_is_where_the_patch_came_from(mini_encoder: Encoder, bank: Path) -> None:
    """A picture of the memory finds each of its own patches in its own place."""
    detector = Detector(mini_encoder, MemoryBank.load(bank))
    (found,) = detector.predict([str(BOARDS[3])], evidence=1)
    spot = next(one for one in found.evidence if one.level == "patch")
    assert spot.source == BOARDS[3].name
    assert spot.box == spot.query_box == found.peak_box
    assert spot.size == load_image(BOARDS[3]).size


def test_one_product_s_images_judge_alone(
    client: Client, mini_encoder: Encoder, bank: Path
) -> None:
    image = QUERIES["defect"][0]
    own = client.score_image(image, object="caps", evidence=3)
    sources = {one.source for one in own.evidence}
    assert sources <= {path.name for path in CAPS}
    judge = Judge.of(mini_encoder, MemoryBank.load(bank), product="caps")
    assert own.score == pytest.approx(judge.detector.predict([str(image)])[0].score, abs=1e-4)
    assert own.threshold == pytest.approx(judge.threshold, abs=1e-6)
    whole = client.score_image(image)
    assert whole.threshold != own.threshold
    assert not own.warnings
    with pytest.raises(APIError, match="boards, caps, nut") as refused:
        client.score_image(image, object="screws")
    assert (refused.value.status, refused.value.code) == (404, "unknown_object")


def test_a_product_too_small_for_a_threshold_says_so(client: Client) -> None:
    found = client.score_image(QUERIES["good"][0], object="nut")
    assert found.verdict is None
    assert found.threshold is None
    assert any(text.startswith("no_threshold: ") and "'nut'" in text for text in found.warnings)


def test_a_lesson_of_one_product_is_known_at_once(mini_encoder: Encoder, tmp_path: Path) -> None:
    path = saved(mini_encoder, {"boards": BOARDS[:5], "caps": CAPS[:5]}, tmp_path / "bank")
    image = QUERIES["good"][0]
    app = create_app(Settings(bank=path, auth="off"), encoder_of=lambda *_: mini_encoder)
    with served(app) as address, Client(address, timeout=600) as client:
        before = client.score_image(image, object="caps")
        entry = client.add_entry(image, "normal", object_name="caps")
        after = client.score_image(image, object="caps", evidence=1)
        assert after.score < before.score
        assert {one.entry_id for one in after.evidence} == {entry.entry_id}
        other = client.score_image(image, object="boards", evidence=1)
        assert entry.entry_id not in {one.entry_id for one in other.evidence}
        client.remove_entry(entry.entry_id)
        again = client.score_image(image, object="caps")
        assert again.score == pytest.approx(before.score, abs=1e-5)
        defect = client.add_entry(QUERIES["defect"][0], "anomalous", object_name="caps")
        assert "compares with good images alone" in defect.note
        assert "covers no patch" not in defect.note
        thin = np.zeros((640, 640), np.uint8)
        thin[300, 300:320] = 255
        defect = client.add_entry(QUERIES["defect"][1], "anomalous", mask=thin, object_name="caps")
        assert "compares with good images alone" in defect.note
        assert "the mask covers no patch wholly" in defect.note


def test_the_inference_protocol_knows_both(url: str, client: Client) -> None:
    import httpx

    data = QUERIES["defect"][0].read_bytes()
    names = ("score", "verdict", "p_value", "map")
    for parameters in ({}, {"object": "boards"}):
        head = {
            "parameters": parameters,
            "inputs": [
                {
                    "name": "images",
                    "datatype": "BYTES",
                    "shape": [1],
                    "parameters": {"binary_data_size": len(data) + 4},
                }
            ],
            "outputs": [{"name": name} for name in names],
        }
        text = json.dumps(head).encode()
        answer = httpx.post(
            f"{url}/v2/models/bank/infer",
            content=text + struct.pack("<I", len(data)) + data,
            headers={"Inference-Header-Content-Length": str(len(text))},
            timeout=600,
        )
        assert answer.status_code == 200, answer.text
        found = {out["name"]: out["data"][0] for out in answer.json()["outputs"]}
        wanted = client.score_image(QUERIES["defect"][0], **parameters)
        assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
        assert found["verdict"] == wanted.verdict
        assert found["p_value"] == pytest.approx(wanted.p_value, abs=1e-6)
    body = {"parameters": {"object": 3}, "inputs": head["inputs"]}
    del body["inputs"][0]["parameters"]
    body["inputs"][0]["data"] = ["eA=="]
    refused = httpx.post(f"{url}/v2/models/bank/infer", json=body, timeout=600)
    assert refused.status_code == 422
    assert "a product's name" in refused.text


def test_the_batch_client_writes_its_table_and_page(url: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    done = CliRunner().invoke(
        batch,
        [
            "score", str(FOLDER / "query" / "defect"), "--server", url, "--out", str(out),
            "--summary", str(tmp_path / "page.html"), "--overlays", str(tmp_path / "overlays"),
            "--object", "boards",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(QUERIES["defect"])
    assert all(row["verdict"] and row["p_value"] > 0 and "probability" not in row for row in rows)
    assert (tmp_path / "page.html").is_file()
    assert len(list((tmp_path / "overlays").rglob("*.*"))) == len(rows)


def test_watch_judges_by_good_parts_alone(
    mini_encoder: Encoder, bank: Path, tmp_path: Path
) -> None:
    folder, stop = tmp_path / "in", threading.Event()
    folder.mkdir()
    for kind in QUERIES:
        (folder / f"{kind}.png").write_bytes(QUERIES[kind][0].read_bytes())
    judge = Judge.of(mini_encoder, MemoryBank.load(bank), product="boards")
    rows: dict[str, dict] = {}

    def report(row: dict) -> None:
        rows[Path(row["name"]).name] = row
        if len(rows) == 2:
            stop.set()

    options = WatchOptions(tmp_path / "out", settle=0.0, poll=0.05)
    watch_folder(folder, judge, options, stop=stop, report=report)
    assert rows["good.png"]["verdict"] == "normal"
    assert rows["defect.png"]["p_value"] < rows["good.png"]["p_value"]
