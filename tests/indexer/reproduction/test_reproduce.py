"""`mrad reproduce` from end to end on miniature trees, with the shipped encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mrad_indexer.cli.main import app
from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.runner import evaluate
from mrad_indexer.loading import choose
from mrad_indexer.reproduction import run as module
from mrad_indexer.reproduction.paper import KNOWN, METRICS, read_figures
from mrad_indexer.reproduction.sets import SETS, find
from typer.testing import CliRunner

from mrad import Detector, Encoder, MemoryBank
from mrad.errors import DataError
from mrad.heads.checkpoint import load_checkpoint
from tests.indexer.datasets import trees

TREES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "mvtec": ("MVTec-AD", trees.mvtec_ad),
    "visa": ("VisA_20220922", trees.visa),
    "mpdd": ("MPDD", trees.mpdd),
    "btad": ("BTech_Dataset_transformed", trees.btad),
    "dtd": ("DTD-Synthetic", trees.dtd_synthetic),
    "dagm": ("DAGM 2007", trees.dagm),
    "ksdd": ("KolektorSDD", trees.ksdd),
    "head_ct": ("HeadCT", trees.head_ct),
    "brain_mri": ("Brain MRI", trees.brain_mri),
    "br35h": ("Br35H", trees.br35h),
    "clinic_db": ("CVC-ClinicDB", trees.clinic_db),
    "colon_db": ("CVC-ColonDB", trees.images_and_masks(".png")),
    "kvasir": ("Kvasir-SEG", trees.images_and_masks(".jpg")),
    "endo": ("EndoTect 2020", trees.images_and_masks(".jpg")),
    "isic": ("ISIC", trees.isic),
    "tn3k": ("TN3K", trees.tn3k),
}
FEW = ("mvtec", "visa", "head_ct", "kvasir")
runner = CliRunner()


def lay(root: Path, *keys: str) -> Path:
    for key in keys:
        folder, make = TREES[key]
        (root / folder).mkdir(parents=True)
        make(root / folder)
    return root


@pytest.fixture
def loads_mini(monkeypatch, mini_encoder: Encoder) -> None:
    """`Encoder.load` gives the one that is loaded already, on the CPU."""
    monkeypatch.setattr(Encoder, "load", lambda *names, **options: mini_encoder)


def ask(data: Path, out: Path, *more: str, status: int = 0):
    command = ["reproduce", str(data), "--out", str(out), "--encoder", "mrad-mini", *more]
    done = runner.invoke(app, command)
    assert done.exit_code == status, done.output
    return done


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def check(out: Path, keys: tuple[str, ...]) -> None:
    """Every set under every head, with figures where the set allows them and nowhere else."""
    rows = {(row["set"], row["head"]): row for row in report(out)["rows"]}
    assert set(rows) == {(key, head) for key in keys for head in ("tf", "ft", "clip")}
    for (key, _), row in rows.items():
        by_image = row["normal"] > 0
        by_pixel = key not in ("head_ct", "brain_mri", "br35h")
        assert by_image or by_pixel
        for metric in METRICS:
            wanted = by_image if metric.startswith("image") else by_pixel
            value = row["percent"][metric]
            assert (value is not None) is wanted, (key, metric)
            assert value is None or 0 <= value <= 100
            assert row["paper"][metric] == KNOWN.get((key, row["head"], metric))
    page = (out / "report.html").read_text()
    for item in SETS:
        assert (f'<td class="left">{item.name}</td>' in page) is (item.key in keys)
    assert "mean, all sets" in page
    assert "http" not in page


@pytest.mark.usefixtures("loads_mini")
def test_the_paper_s_experiment_and_its_second_run(tmp_path, mini_encoder, monkeypatch):
    data, out = lay(tmp_path / "sets", *FEW), tmp_path / "out"
    ask(data, out)
    check(out, FEW)
    # VisA is judged by MVTec's memory, all others by VisA's, their test splits at the encoder's size.
    rows = {(row["set"], row["head"]): row["percent"] for row in report(out)["rows"]}
    for key, memory in (("visa", "mvtec"), ("mvtec", "visa"), ("kvasir", "visa")):
        bank = MemoryBank.load(out / "banks" / memory)
        dataset = choose(read_dataset(data / TREES[key][0]))
        side = mini_encoder.image_size
        own = evaluate({"tf": Detector(mini_encoder, bank)}, dataset, resolution=side)
        for level, metric in (("image", "auroc"), ("pixel", "auroc"), ("pixel", "aupro")):
            wanted = own.candidates[0].mean(level, metric)
            found = rows[key, "tf"][f"{level}_{metric}"]
            assert found == (None if wanted is None else pytest.approx(100 * wanted)), key
    # The paper's recipe: a cosine in FT alone, one rate in both stages of CLIP.
    alone = load_checkpoint(out / "heads" / "ft-visa.safetensors").training["recipe"]
    both = load_checkpoint(out / "heads" / "clip-visa.safetensors").training["recipe"]
    assert alone["ft"]["schedule"] == "cosine"
    assert both["ft"]["schedule"] == both["clip"]["schedule"] == "constant"

    def encode(*given, **options):
        raise AssertionError("it was encoded already")

    monkeypatch.setattr(mini_encoder, "encode_pixels", encode)
    first = report(out)
    done = ask(data, out)
    assert "stands already" in done.output
    assert report(out)["rows"] == first["rows"]
    assert all(step["resumed"] for step in report(out)["steps"])


@pytest.mark.usefixtures("loads_mini")
def test_a_run_that_was_cut_off_goes_on_and_another_image_is_judged_anew(tmp_path, monkeypatch):
    data, out = lay(tmp_path / "sets", "visa", "head_ct", "kvasir"), tmp_path / "out"
    own, seen = module.evaluate, []

    def evaluate_once(detectors, dataset, **options):
        seen.append(dataset.root.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return own(detectors, dataset, **options)

    monkeypatch.setattr(module, "evaluate", evaluate_once)
    runner.invoke(app, ["reproduce", str(data), "--out", str(out), "--head", "tf"])
    assert not (out / "report.json").exists()
    ask(data, out, "--head", "tf")
    assert seen == ["HeadCT", "Kvasir-SEG", "Kvasir-SEG"]
    trees.picture(data / "Kvasir-SEG/images/c3.jpg")
    trees.picture(data / "Kvasir-SEG/masks/c3.jpg", mask=True)
    ask(data, out, "--head", "tf")
    assert seen[3:] == ["Kvasir-SEG"]
    assert {row["set"]: row["anomalous"] for row in report(out)["rows"]}["kvasir"] == 3


@pytest.mark.usefixtures("loads_mini")
def test_a_broken_set_fails_alone_and_one_without_memory_says_why(tmp_path):
    data, out = lay(tmp_path / "sets", "visa", "head_ct", "kvasir"), tmp_path / "out"
    (data / "HeadCT/head_ct/001.png").write_bytes(b"no image")
    done = ask(data, out, "--head", "tf", status=1)
    assert "001.png" in done.output
    found = report(out)
    assert {row["set"] for row in found["rows"]} == {"kvasir"}
    assert "made of mvtec, which is missing" in found["missing"]["visa"]
    assert "001.png" in found["missing"]["head_ct"]
    page = (out / "report.html").read_text()
    assert "MVTec AD: not evaluated: no folder mvtec or mvtecad" in page


def test_what_cannot_be_asked_is_one_line(tmp_path):
    for arguments, message in (
        (["--set", "cifar"], "there is no set 'cifar'"),
        (["--head", "nn"], "there is no head 'nn'"),
        ([], "none of the paper's sets"),
    ):
        done = ask(tmp_path, tmp_path / "out", *arguments, status=2)
        assert message in done.output
        assert "Traceback" not in done.output


def test_the_sixteen_sets_are_found_by_the_names_people_give_their_folders(tmp_path):
    assert len(SETS) == 16
    assert {item.key for item in SETS} == TREES.keys()
    found, missing = find(lay(tmp_path, *TREES))
    assert not missing
    for key, item in found.items():
        assert item.dataset.root.name == TREES[key][0]
        assert {record.split for record in item.dataset.records} <= {"", "test"}
        assert item.set.memory != key


def test_the_paper_s_figures_from_a_file(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text("set,head,metric,value\nmvtec,tf,image_auroc,81.5\n")
    assert read_figures(path) == {("mvtec", "tf", "image_auroc"): 81.5}
    for line, message in (
        ("cifar,tf,image_auroc,1", "'cifar' is none of"),
        ("mvtec,nn,image_auroc,1", "'nn' is none of"),
        ("mvtec,tf,f1,1", "'f1' is none of"),
        ("mvtec,tf,image_auroc,815", "no percentage"),
        ("mvtec,tf,image_auroc,?", "line 2"),
    ):
        path.write_text(f"set,head,metric,value\n{line}\n")
        with pytest.raises(DataError, match=message):
            read_figures(path)
    assert all(0 <= value <= 100 for value in KNOWN.values())


@pytest.mark.nightly
@pytest.mark.usefixtures("loads_mini")
def test_all_sixteen_sets(tmp_path):
    data, out = lay(tmp_path / "sets", *TREES), tmp_path / "out"
    ask(data, out)
    check(out, tuple(TREES))
