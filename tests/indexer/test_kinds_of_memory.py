"""What people really have, from a folder to a verdict: each kind of memory through every door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from mrad_client import Client
from mrad_indexer.datasets import read_dataset
from mrad_service.app import create_app
from mrad_service.settings import Settings
from PIL import Image

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.errors import NoGoodPartsError

GOODS, BADS = 8, 6


@dataclass(frozen=True)
class Kind:
    """A kind of memory, and what is to be expected of it."""

    name: str
    fill: Callable[[Path, Path, Callable], None]
    head: str
    rule: str | None
    """Of its threshold; None: it can have none."""
    unfit: tuple[str, ...] = ()


def copies(folder: Path, pictures: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / picture.name).symlink_to(picture)


def some(images: Path, kind: str, count: int) -> list[Path]:
    return sorted((images / "memory" / kind).glob("*.png"))[:count]


def good_only(root: Path, images: Path, _) -> None:
    copies(root, some(images, "good", GOODS))


def without_masks(root: Path, images: Path, _) -> None:
    copies(root / "good", some(images, "good", GOODS))
    copies(root / "defect", some(images, "defect", BADS))


def with_masks(root: Path, images: Path, _) -> None:
    without_masks(root, images, _)
    copies(root / "masks", some(images, "masks", BADS))


def few_good_with_masks(root: Path, images: Path, _) -> None:
    """Four good parts are too few to ask for `nn` too."""
    with_masks(root, images, _)
    for path in sorted((root / "good").iterdir())[4:]:
        path.unlink()


def worthless_masks(root: Path, images: Path, make_image) -> None:
    """Inverted, full and empty: each is read, with a warning, and none says where a defect is."""
    with_masks(root, images, make_image)
    for number, place in enumerate(sorted((root / "masks").iterdir())):
        with Image.open(place) as opened:
            mask = np.asarray(opened.convert("L")) > 0
        place.unlink()
        chosen = [~mask, np.ones_like(mask), np.zeros_like(mask)][number % 3]
        Image.fromarray(chosen).save(place)


def with_another_product(root: Path, images: Path, make_image) -> None:
    """Beside the parts a folder of which the bank is built that they are added to."""
    good_only(root, images, make_image)
    for seed in range(8):
        bad = seed % 2 == 1
        picture, mask = make_image(seed, (96, 96), defect=bad)
        place = root.parent / "caps" / ("defect" if bad else "good") / f"{seed}.png"
        for path, content in ((place, picture), (root.parent / "caps/masks" / place.name, mask)):
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                content.save(path)


def one_good(root: Path, images: Path, _) -> None:
    copies(root, some(images, "good", 1))


KINDS = [
    Kind("good_only", good_only, "nn", "fpr", ("tf", "ft", "clip")),
    Kind("without masks", without_masks, "combined", "f1", ("tf", "ft", "clip")),
    Kind("another product", with_another_product, "combined", "f1"),
    Kind("one good", one_good, "nn", None, ("tf", "ft", "clip")),
    Kind("with masks", with_masks, "combined", "f1"),
    Kind("few good, masks", few_good_with_masks, "tf", "f1"),
    Kind("worthless masks", worthless_masks, "combined", "f1"),
]


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch, mini_encoder: Encoder) -> None:
    monkeypatch.setattr(Encoder, "load", lambda *given, **options: mini_encoder)


@pytest.fixture
def ask(mini_encoder: Encoder) -> Iterator[Callable[[Path], TestClient]]:
    """A server of a bank."""
    opened = []

    def serve(bank: Path) -> TestClient:
        settings = Settings(bank=bank, auth="off", request_seconds=600)
        client = TestClient(create_app(settings), base_url="http://127.0.0.1")
        client.__enter__()
        opened.append(client)
        return client

    yield serve
    for client in opened:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "-"))
def test_every_kind_of_memory_is_useful_to_the_end(
    kind: Kind, tmp_path: Path, demo_images: Path, make_image, mrad, ask
) -> None:
    data, bank = tmp_path / "parts", tmp_path / "bank"
    kind.fill(data, demo_images, make_image)

    other = []
    if (tmp_path / "caps").exists():
        assert mrad("build", tmp_path / "caps", "--out", tmp_path / "other").exit_code == 0
        other = ["--base", tmp_path / "other"]
    built = mrad("build", data, "--out", bank, *other)
    assert built.exit_code == 0, built.output
    assert f"head {kind.head} answers by default" in built.output
    assert "next: mrad " in built.output
    if read_dataset(data).name == "flat":
        assert "as good parts" in built.output

    facts = json.loads(mrad("bank", "inspect", bank, "--json").stdout)
    assert facts["heads"]["default"] == kind.head
    assert tuple(facts["heads"]["unfit"]) == kind.unfit
    shown = mrad("bank", "inspect", bank).stdout
    assert f"head {kind.head} by default" in shown
    if kind.unfit:
        assert f"not {', '.join(kind.unfit)}: it compares two classes, and" in shown

    calibrated = mrad("calibrate", bank)
    if kind.rule is None:
        assert calibrated.exit_code == 2
        assert "Add good images" in calibrated.stderr
    else:
        assert calibrated.exit_code == 0, calibrated.output
        held = MemoryBank.load(bank).calibration
        assert list(held) == [kind.head]
        # With so few defects the scores may not be known to tell anything: then by false alarms.
        assert held[kind.head]["image"]["rule"] in {kind.rule, "fpr"}
        assert held[kind.head]["pixel"]["value"] > 0
        assert (held[kind.head]["scores_anomalous"] is None) == (kind.rule == "fpr")

    query = demo_images / "query"
    scored = mrad("score", query / "good", query / "defect", "--bank", bank, "--out",
                  tmp_path / "scores", "--format", "jsonl")  # fmt: skip
    assert scored.exit_code == 0, scored.output
    lines = (tmp_path / "scores" / "results.jsonl").read_text().splitlines()
    rows = {Path(row["name"]).name: row for row in map(json.loads, lines)}
    good, bad = (
        [rows[path.name] for path in sorted((query / name).glob("*.png"))]
        for name in ("good", "defect")
    )
    if kind.name != "another product":  # whose defects are not like these
        assert _mean(bad) > _mean(good)
    if kind.rule == "fpr":
        assert {row["verdict"] for row in bad} == {"anomalous"}
        # Eight good parts promise no less than one false alarm in nine.
        assert "normal" in {row["verdict"] for row in good}
        assert min(row["p_value"] for row in good) >= max(row["p_value"] for row in bad)
        assert all(0 < row["p_value"] <= 1 for row in rows.values())

    judged = mrad("eval", query, "--bank", bank, "--out", tmp_path / "report")
    assert judged.exit_code == 0, judged.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["candidates"][0]["config"]["head"] == kind.head

    client = ask(bank)
    assert client.get("/v1/bank").json()["head"] == kind.head
    path = sorted((query / "defect").glob("*.png"))[0]
    with Client("http://127.0.0.1", transport=through(client)) as sdk:
        result = sdk.score_image(path)
    row = rows[path.name]
    assert result.score == pytest.approx(row["score"], abs=1e-5)
    for name in ("verdict", "p_value", "probability", "calibrated_score"):
        expected = row.get(name)
        assert getattr(result, name) == (
            pytest.approx(expected, abs=1e-2) if isinstance(expected, float) else expected
        )
    assert (result.verdict is None) == (kind.rule is None)


def test_defects_alone_are_refused_with_what_to_do(
    tmp_path: Path, demo_images: Path, mini_encoder: Encoder, mrad
) -> None:
    data = tmp_path / "parts"
    copies(data / "defect", some(demo_images, "defect", 2))
    built = mrad("build", data, "--out", tmp_path / "bank")
    assert built.exit_code == 2
    assert "add good images" in built.stderr
    assert not (tmp_path / "bank").exists()
    samples = [Sample(path, anomalous=True) for path in some(demo_images, "defect", 2)]
    MemoryBank.from_samples(mini_encoder, samples).save(tmp_path / "bank")
    shown = mrad("bank", "inspect", tmp_path / "bank").stdout
    assert "cannot score yet" in shown
    assert "ten are a good beginning" in shown
    with pytest.raises(NoGoodPartsError, match="ten are a good beginning"):
        Detector(mini_encoder, MemoryBank.load(tmp_path / "bank"))


def through(client: TestClient) -> httpx.MockTransport:
    """The SDK's requests, answered by an application without a socket."""

    def handle(request: httpx.Request) -> httpx.Response:
        kept = {"content-type": request.headers["content-type"]}
        answer = client.request(
            request.method, str(request.url), content=request.read(), headers=kept
        )
        return httpx.Response(answer.status_code, content=answer.content)

    return httpx.MockTransport(handle)


def _mean(rows: list[dict]) -> float:
    return sum(row["score"] for row in rows) / len(rows)
