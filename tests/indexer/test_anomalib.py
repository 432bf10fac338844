"""The bridge to anomalib: its layouts in, the fields of its batches out."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mrad_indexer.anomalib import batches, read_folder
from mrad_indexer.evaluation.runner import evaluate
from sklearn.metrics import roc_auc_score

from mrad.errors import DataError

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/anomalib.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_image):
    """Names of the user's own choice, as `Folder` allows; one defect without a mask."""
    root = tmp_path_factory.mktemp("widgets")
    for seed in range(9):
        image, mask = make_image(seed, (80, 60 + seed), defect=seed % 3 == 0)
        part = "crack" if mask else "fine" if seed % 3 == 1 else "fine_too"
        (root / part).mkdir(exist_ok=True)
        image.save(root / part / f"{seed}.png")
        if mask is not None and seed:
            (root / "truth/crack").mkdir(parents=True, exist_ok=True)
            mask.save(root / f"truth/crack/{seed}_mask.png")
    return root


def test_folder_by_its_own_arguments(folder):
    dataset = read_folder(
        folder,
        normal_dir="fine",
        abnormal_dir=["crack"],
        normal_test_dir="fine_too",
        mask_dir="truth/crack",
    )
    facts = {(r.source, r.anomalous, r.mask and r.mask.name, r.split) for r in dataset.records}
    assert ("crack/3.png", True, "3_mask.png", "test") in facts
    assert ("crack/0.png", True, None, "test") in facts
    assert ("fine/1.png", False, None, "train") in facts
    assert ("fine_too/2.png", False, None, "test") in facts
    with pytest.raises(DataError, match="not a folder"):
        read_folder(folder, normal_dir="nowhere")


def test_batches_hold_what_the_metrics_take(folder, tiny_detector):
    dataset = read_folder(folder, normal_dir="fine", abnormal_dir="crack", mask_dir="truth")
    found = list(batches(tiny_detector, dataset, side=48, batch_size=4, threshold=0.5))
    assert [len(batch["gt_label"]) for batch in found] == [4, 1, 1]
    for batch in found[:2]:
        count = len(batch["image_path"])
        assert batch["image"].shape == (count, 3, 48, 48)
        assert batch["anomaly_map"].shape == batch["gt_mask"].shape == (count, 48, 48)
        assert batch["anomaly_map"].dtype == batch["pred_score"].dtype == torch.float32
        assert batch["gt_label"].dtype == batch["gt_mask"].dtype == torch.bool
        assert batch["image"].min() >= 0
        assert batch["image"].max() <= 1
        assert batch["pred_label"].tolist() == (batch["pred_score"] >= 0.5).tolist()
        assert "pred_mask" not in batch
        assert not batch["gt_mask"][~batch["gt_label"]].any()
        assert batch["gt_mask"][batch["gt_label"]].any()
    assert "gt_mask" not in found[2]
    assert found[2]["image_path"][0].endswith("0.png")


def test_figures_equal_our_own_evaluation(folder, tiny_detector):
    dataset = read_folder(folder, normal_dir="fine", abnormal_dir="crack", mask_dir="truth")
    result = evaluate({"tf": tiny_detector}, dataset, resolution=48).candidates[0].objects[0]
    found = list(batches(tiny_detector, dataset, side=48))
    labels = np.concatenate([batch["gt_label"] for batch in found])
    scores = np.concatenate([batch["pred_score"] for batch in found])
    assert roc_auc_score(labels, scores) == pytest.approx(result.image.auroc, abs=1e-6)
    masked = [batch for batch in found if "gt_mask" in batch]
    truth = np.concatenate([batch["gt_mask"].ravel() for batch in masked])
    maps = np.concatenate([batch["anomaly_map"].ravel() for batch in masked])
    assert roc_auc_score(truth, maps) == pytest.approx(result.pixel.auroc, abs=1e-3)


def test_anomalibs_own_metrics_agree(folder, tiny_detector):
    metrics = pytest.importorskip("anomalib.metrics", reason="anomalib is not installed")
    from anomalib.data import ImageBatch

    dataset = read_folder(folder, normal_dir="fine", abnormal_dir="crack", mask_dir="truth")
    result = evaluate({"tf": tiny_detector}, dataset, resolution=48).candidates[0].objects[0]
    image, pixel = ["pred_score", "gt_label"], ["anomaly_map", "gt_mask"]
    expected = (
        (metrics.AUROC(fields=image), result.image.auroc),
        (metrics.F1Max(fields=image), result.image.f1_max),
        (metrics.AUROC(fields=pixel), result.pixel.auroc),
        (metrics.F1Max(fields=pixel), result.pixel.f1_max),
        (metrics.AUPRO(fields=pixel), result.pixel.aupro),
    )
    for batch in batches(tiny_detector, dataset, side=48):
        for metric, _ in expected:
            if "gt_mask" in batch or metric.fields == image:
                metric.update(ImageBatch(**batch))
    for metric, value in expected:
        assert float(metric.compute()) == pytest.approx(value, abs=2e-3), metric


def test_the_notebook_is_sound():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))
            assert cell["outputs"] == []
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert "with the trained one it was not run" in text
