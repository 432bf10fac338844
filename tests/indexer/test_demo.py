"""`mrad demo`: offline, on the bundled images, with the shipped encoder."""

from __future__ import annotations

import numpy as np
from mrad_indexer.datasets import read_dataset
from mrad_indexer.demo import contact_sheet
from mrad_indexer.scoring.judge import Judge
from PIL import Image

from mrad import MemoryBank, demo


def test_the_bundle_is_small_whole_and_licensed():
    files = [path for path in demo.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_500_000
    assert "MIT License" in (demo.FOLDER / "LICENSE").read_text()
    memory, query = (read_dataset(demo.FOLDER / part) for part in ("memory", "query"))
    assert (len(memory), len(query)) == (81, 6)
    assert memory.counts["unmasked"] == query.counts["unmasked"] == 0
    assert not {r.image.stem for r in memory.records} & {r.image.stem for r in query.records}


def test_demo(tmp_path, mrad, mini_encoder):
    done = mrad("demo", "--out", tmp_path / "demo", "--device", "cpu")
    assert done.exit_code == 0, done.output
    bank = MemoryBank.load(tmp_path / "demo/bank", encoder=mini_encoder)
    assert len(bank.entries) == 81
    good_only = MemoryBank.load(tmp_path / "demo/good-bank", encoder=mini_encoder)
    assert {entry.label for entry in good_only.entries} == {0}
    assert list(good_only.calibration) == ["nn"]
    for name in ("bank", "good-bank"):
        assert len(list((tmp_path / "demo/overlays" / name).iterdir())) == 6
    with Image.open(tmp_path / "demo/contact-sheet.png") as sheet:
        assert sheet.width == 1260
        assert np.asarray(sheet.convert("L")).std() > 20
    assert str(tmp_path / "demo/contact-sheet.png") in done.stdout
    assert f"mrad serve --no-auth --bank {tmp_path / 'demo/bank'}" in done.stdout
    for name in (p.stem for p in (tmp_path / "demo/overlays/bank").iterdir()):
        (line,) = (line for line in done.stdout.splitlines() if f"{name}.png" in line)
        for score, verdict in zip(*[iter(line.split()[2:])] * 2):
            assert (float(score) >= 50) == (verdict == "anomalous"), "of 100, the threshold at 50"
    # What the shipped encoder is for: defects stand out from the boards around them.
    assert "What helps:" in done.stdout  # the small encoder, by good boards of many designs alone
    records = read_dataset(demo.FOLDER / "query").records
    for held in (bank, good_only):
        found = Judge.of(mini_encoder, held).detector.predict([r.image for r in records])
        inside, scores = [], {True: [], False: []}
        for record, prediction in zip(records, found):
            scores[record.anomalous].append(prediction.score)
            mask = record.read_mask(prediction.size)
            if record.anomalous:
                values = prediction.anomaly_map
                inside.append(float(values[mask].mean() > values[~mask].mean()))
        assert np.mean(inside) > 0.5
        assert np.mean(scores[True]) > np.mean(scores[False])
    assert contact_sheet([]).width == 1260
