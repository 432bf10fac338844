"""A memory of plain patch tokens, from good pictures to a served verdict, and heads that fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fastapi.testclient import TestClient
from mrad_indexer.loading import encoder_of
from mrad_service.app import create_app
from mrad_service.settings import Settings
from safetensors.torch import save_file

from mrad import Encoder, MemoryBank
from mrad.errors import EncoderMismatchError, UnsupportedEncoderError

TIMM = "timm:test_vit.r160_in1k"
GOODS = 12


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of timm's smallest transformer, seeded; caches and notes go to an empty home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    path = tmp_path / "mine.safetensors"
    save_file(timm.create_model(TIMM.removeprefix("timm:"), pretrained=False).state_dict(), path)
    return path


@pytest.fixture
def good_only(tmp_path: Path, demo_images: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    for path in sorted((demo_images / "memory" / "good").glob("*.png"))[:GOODS]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("name", [TIMM, "mrad-mini:plain"])
def test_from_twelve_good_pictures_to_a_served_verdict(
    name: str,
    weights: Path,
    good_only: Path,
    tmp_path: Path,
    demo_images: Path,
    mrad: Callable[..., Any],
) -> None:
    bank, query = tmp_path / "bank", demo_images / "query"
    asked = ["--encoder", name] + (["--weights", weights] if name == TIMM else [])
    built = mrad(
        "build", good_only, "--out", bank, *asked, "--precision", "auto", "--device", "cpu"
    )
    assert built.exit_code == 0, built.output
    assert "head nn answers by default" in built.output
    facts = json.loads(mrad("bank", "inspect", bank, "--json").stdout)
    assert facts["encoder"]["architecture"] == name
    done = mrad("calibrate", bank, "--false-alarm-rate", "0.1")
    assert done.exit_code == 0, done.output

    picture = sorted((query / "defect").glob("*.png"))[0]
    done = mrad("score", picture, "--bank", bank, "--out", tmp_path / "scores", "--format", "jsonl")
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "scores" / "results.jsonl").read_text().splitlines()[0])
    done = mrad("eval", query, "--bank", bank, "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output

    settings = Settings(bank=bank, auth="off", request_seconds=600)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        with picture.open("rb") as file:
            answer = client.post(
                "/v1/score", files={"images": (picture.name, file)}, data={"evidence": 1}
            )
        assert answer.status_code == 200, answer.text
        result = answer.json()["results"][0]
    assert result["verdict"] == row["verdict"]
    assert result["score"] == pytest.approx(row["score"], abs=1e-4)
    assert {one["level"] for one in result["evidence"]} == {"image", "patch"}


def test_a_query_in_other_features_is_refused(
    good_only: Path, tmp_path: Path, mrad: Callable[..., Any]
) -> None:
    bank = tmp_path / "bank"
    done = mrad(
        "build", good_only, "--out", bank, "--encoder", "mrad-mini:plain", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    loaded = MemoryBank.load(bank)
    with pytest.raises(
        EncoderMismatchError, match=r"built by mrad-mini:plain at .* is mrad-mini at"
    ):
        loaded.check(Encoder.load("mrad-mini", device="cpu"))
    assert encoder_of(loaded, device="cpu").name == "mrad-mini:plain"
    own = mrad("build", good_only, "--out", tmp_path / "own", "--device", "cpu")
    assert own.exit_code == 0, own.output
    joined = mrad("bank", "merge", bank, tmp_path / "own", "--out", tmp_path / "joined")
    assert joined.exit_code == 2
    assert "mrad-mini:plain" in joined.output


def test_heads_that_fit(
    weights: Path, tmp_path: Path, make_folder: Any, mrad: Callable[..., Any]
) -> None:
    """tf and combined ask a memory of both classes, ft trains, clip says what to do."""
    data, bank, out = (
        make_folder(tmp_path / "data", 12),
        tmp_path / "bank",
        tmp_path / "ft.safetensors",
    )
    asked = ["--encoder", TIMM, "--weights", weights, "--device", "cpu"]
    assert mrad("build", data, "--out", bank, *asked).exit_code == 0
    training = ["--set", "epochs=1", "--cache", tmp_path / "features"]
    done = mrad("train", "ft", data, "--out", out, *asked, *training)
    assert done.exit_code == 0, done.output
    report = mrad("eval", data, "--bank", bank, "--head", "tf", "--head", "combined", "--head", "nn",
                  "--head", f"ft:{out}", "--weights", weights, "--out", tmp_path / "report")  # fmt: skip
    assert report.exit_code == 0, report.output
    clip = mrad("train", "clip", data, "--out", tmp_path / "clip.safetensors", *asked)
    assert clip.exit_code == 2
    assert "build the memory with mrad-mini or a CLIP of open_clip" in clip.output
    shown = json.loads(mrad("bank", "inspect", bank, "--json").stdout)
    assert shown["heads"]["unfit"] == {"clip": shown["heads"]["unfit"]["clip"]}, (
        "the others all fit"
    )
    for command in ("checkpoint", "memory"):
        files = [weights] if command == "checkpoint" else [weights, weights]
        done = mrad(
            "import", command, *files, "--out", tmp_path / "x", "--encoder", "mrad-mini:plain"
        )
        assert done.exit_code == 2
        assert "name the CLIP that they were made with" in done.output


def test_text_is_compared_with_the_papers_features_alone(good_only: Path) -> None:
    plain = Encoder.load("mrad-mini:plain", device="cpu")
    with pytest.raises(UnsupportedEncoderError, match="build the memory with 'mrad-mini'"):
        _ = plain.clip
