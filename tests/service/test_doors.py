"""Every encoding of `tests/cases` by every door: all say the same, and docs/images.md says what.

After a change of what is read, `MRAD_WRITE_DOCS=1 pytest tests/service/test_doors.py` writes the table.
"""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from mrad_client.images import upload
from mrad_indexer.datasets import Record
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.local import LocalTransport
from mrad_service.app import create_app
from mrad_service.settings import Settings
from PIL import Image

from mrad import Detector, Encoder, MemoryBank
from mrad.errors import ImageError, MaskError
from mrad.images.guard import code_of
from mrad.images.masks import read_mask
from mrad.images.reader import read_image
from mrad.types import Sample
from tests.cases import CASES, MASKS, PICTURES, close, truth

PAGE = Path(__file__).parents[2] / "docs" / "images.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
DEFECT = CASES / "masks" / "_image.png"


@pytest.fixture(scope="module")
def bank(tiny_encoder: Encoder) -> MemoryBank:
    """A memory of the picture itself, and of the masks' picture with the true mask."""
    images = CASES / "images"
    return MemoryBank.from_samples(
        tiny_encoder,
        [
            Sample(images / "a_base8.png", False),
            Sample(images / "bw8.png", False),
            Sample(DEFECT, True, CASES / "masks" / "g255.png"),
        ],
    )


@pytest.fixture(scope="module")
def client(
    bank: MemoryBank, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    path = tmp_path_factory.mktemp("doors") / "bank"
    bank.save(path)
    settings = Settings(bank=path, auth="off", batch_wait=0.0, request_seconds=600)
    app = create_app(settings, encoder_of=lambda bank, device: tiny_encoder)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def test_pictures_are_the_same_by_every_door(bank, client, tiny_encoder):
    detector = Detector(tiny_encoder, bank)
    files = [path.read_bytes() for path in PICTURES]
    sent = [("images", (path.name, data)) for path, data in zip(PICTURES, files)]
    form = client.post("/v1/score", files=sent, data={"fields": "score"}).json()["results"]
    texts = [base64.encodebytes(data).decode() for data in files]  # with line breaks
    texts[0] = "data:image/png;base64," + texts[0]
    body = {"images": texts, "fields": ["score"]}
    listed = client.post("/v1/score", json=body).json()["results"]
    with LocalTransport(Judge.of(tiny_encoder, bank)) as transport:
        local = transport.judge_files(PICTURES)
    for row, path in enumerate(PICTURES):
        (wanted,) = detector.predict([path], maps=False)
        assert upload(path)[1] == files[row]  # the client sends the file as it is
        by_protocol = infer(client, files[row])
        for score, warnings in (
            (form[row]["score"], form[row].get("warnings", [])),
            (listed[row]["score"], listed[row].get("warnings", [])),
            (local[row].columns["score"], local[row].columns["warnings"] or []),
            by_protocol,
        ):
            assert score == pytest.approx(wanted.score, abs=1e-5), path.name
            assert tuple(warnings) == wanted.warnings, path.name
        assert not any(code_of(w).startswith("too_") for w in wanted.warnings) or not close(
            read_image(path).image, path.name
        )


def infer(client: TestClient, data: bytes) -> tuple[float, list[str]]:
    """Score and warnings by the Open Inference Protocol."""
    tensor = struct.pack("<I", len(data)) + data
    head = {
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [1],
                    "parameters": {"binary_data_size": len(tensor)}}],
        "outputs": [{"name": "score"}, {"name": "warnings"}],
    }  # fmt: skip
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = client.post("/v2/models/bank/infer", content=text + tensor, headers=headers).json()
    outputs = {output["name"]: output["data"][0] for output in answer["outputs"]}
    told = json.loads(answer.get("parameters", {}).get("warnings_0", "[]"))
    assert told == json.loads(outputs["warnings"])
    return outputs["score"], told


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.name)
def test_masks_are_the_same_by_every_door(client, path):
    size = (160, 160)
    record = Record(DEFECT, True, path)
    files = {"image": DEFECT.read_bytes(), "mask": (path.name, path.read_bytes())}
    answer = client.post("/v1/memory/entries", files=files, data={"label": "anomalous"})
    try:
        mask = read_mask(path, size)
    except MaskError as error:
        with pytest.raises(MaskError):
            record.truth(size)
        assert answer.json()["code"] == "invalid_mask"
        reason = str(error).replace(f"{path}", "the mask")
        assert answer.json()["detail"].endswith(reason.partition("the mask")[2])
        return
    assert (record.truth(size).anomalous == mask.anomalous).all()
    assert answer.status_code == 201, answer.text
    assert answer.json()["warnings"] == list(mask.warnings)
    client.delete(f"/v1/memory/entries/{answer.json()['entry']['entry_id']}")


def test_strict_input_refuses_what_is_warned_of(client):
    doubtful = CASES / "images" / "png12in16.png"
    files = [("images", (doubtful.name, doubtful.read_bytes()))]
    (result,) = client.post("/v1/score", files=files, data={"strict_input": "true"}).json()[
        "results"
    ]
    assert result["problem"]["code"] == "doubtful_image"
    (result,) = client.post("/v1/score", files=files, data={"bit_depth": "12"}).json()["results"]
    assert result["status"] == "ok"
    assert "warnings" not in result


def test_a_picture_far_from_the_memory_is_told_and_counted(client):
    levels = np.asarray(read_image(CASES / "images" / "a_base8.png").image) // 3
    dark = io.BytesIO()
    Image.fromarray(levels).save(dark, "PNG")
    (result,) = client.post("/v1/score", files=[("images", dark.getvalue())]).json()["results"]
    assert {code_of(text) for text in result["warnings"]} >= {"too_dark"}
    assert 'mrad_image_warnings_total{code="too_dark"}' in client.get("/metrics").text


def test_a_name_beyond_ascii_is_understood(client):
    data = (CASES / "images" / "a_base8.png").read_bytes()
    disposition = 'form-data; name="images"; filename="x.png"; filename*=UTF-8\'\'Pr%C3%BCfung%20%E4%BA%BA.png'
    body = f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    (result,) = client.post("/v1/score", content=body, headers=headers).json()["results"]
    assert result["name"] == "Prüfung 人.png"


def test_the_page_in_the_documentation_is_what_happens():
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = before + BEGIN + table() + END + after
    if os.environ.get("MRAD_WRITE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == text, "docs/images.md is not what happens; MRAD_WRITE_DOCS=1 writes it"


def table() -> str:
    """Each outcome, as all doors have it, with its files."""
    pictures: dict[str, list[str]] = defaultdict(list)
    for path in PICTURES:
        try:
            read = read_image(path)
        except ImageError as error:
            pictures[f"refused: {_short(error, path)}"].append(path.name)
            continue
        right = "right" if close(read.image, path.name) else "not the same"
        pictures[_with(right, read.warnings)].append(path.name)
    masks: dict[str, list[str]] = defaultdict(list)
    for path in MASKS:
        try:
            mask = read_mask(path, (160, 160))
        except MaskError as error:
            masks[f"refused: {_short(error, path)}"].append(path.name)
            continue
        shared = (mask.anomalous & truth()).sum() / max(1, (mask.anomalous | truth()).sum())
        right = "right" if shared >= 0.97 else f"marks {mask.share:.0%}"
        masks[_with(right, mask.warnings)].append(path.name)
    return f"{_rows('Pictures', pictures)}\n{_rows('Masks', masks)}"


def _with(right: str, warnings: Sequence[str]) -> str:
    said = ", ".join(f"`{code_of(text)}`" for text in warnings)
    return f"{right}; warned of: {said}" if said else right


def _rows(what: str, outcomes: dict[str, list[str]]) -> str:
    items = [
        textwrap.fill(
            f"- {outcome}: {' '.join(f'`{name}`' for name in names)}",
            130,
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        for outcome, names in outcomes.items()
    ]
    return "\n".join([f"{what}:", "", *items, ""])


def _short(error: Exception, path: Path) -> str:
    return str(error).replace(f"{path}", "it").partition(". ")[0].partition(": save")[0]
