"""`mrad train` and `mrad import`, as typed."""

from __future__ import annotations

import pytest
import torch
from mrad_indexer.cli import imports as cli_import
from mrad_indexer.cli import main
from mrad_indexer.cli import train as cli_train
from typer.testing import CliRunner

from mrad import Encoder, MemoryBank
from mrad.errors import HeadError
from mrad.heads import load_head
from mrad.heads.checkpoint import load_checkpoint
from mrad.heads.ft import FTWeights

runner = CliRunner()


@pytest.fixture
def dataset(tmp_path, make_image):
    for seed in range(8):
        image, mask = make_image(seed, defect=seed % 2 == 0)
        folder = tmp_path / "data" / ("defect" if mask else "good")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{seed}.png")
        if mask:
            (tmp_path / "data" / "masks").mkdir(exist_ok=True)
            mask.save(tmp_path / "data" / "masks" / f"{seed}.png")
    return tmp_path / "data"


@pytest.fixture
def loads_tiny(monkeypatch, tiny_encoder):
    """`Encoder.load` gives the tiny CLIP, whatever name is typed."""
    monkeypatch.setattr(Encoder, "load", lambda *names, **options: tiny_encoder)


@pytest.mark.usefixtures("loads_tiny")
def test_train_ft(tmp_path, dataset, tiny_encoder):
    out, bank = tmp_path / "out" / "ft.safetensors", tmp_path / "bank"
    command = ["train", "ft", str(dataset), "--out", str(out), "--cache", str(tmp_path / "cache")]
    done = runner.invoke(main.app, [*command, "--set", "epochs=2", "--save-bank", str(bank)])
    assert done.exit_code == 0, done.output
    assert "ft: 2 epochs" in done.stdout
    assert "times slower" in done.stdout
    load_head("ft", tiny_encoder, checkpoint=out).attach(MemoryBank.load(bank))
    clip = ["train", "clip", str(dataset), "--out", str(out), "--cache", str(tmp_path / "cache")]
    done = runner.invoke(main.app, [*clip, "--set", "epochs=1", "--set-ft", "epochs=1"])
    assert done.exit_code == 0, done.output
    assert "0 encoded now" in done.stdout


@pytest.mark.usefixtures("loads_tiny")
@pytest.mark.parametrize(
    ("setting", "message"),
    [("epochs=0", "epochs"), ("epoch=3", "the recipe has: epochs, "), ("epochs", "NAME=VALUE")],
)
def test_a_wrong_setting_is_one_line(tmp_path, dataset, setting, message):
    out = tmp_path / "ft.safetensors"
    done = runner.invoke(
        main.app, ["train", "ft", str(dataset), "--out", str(out), "--set", setting]
    )
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not out.exists()


def test_settings_are_typed():
    from mrad_indexer.training.recipe import FTRecipe

    recipe = cli_train.recipe_of(FTRecipe(), ["learning_rate=1e-3", "start=isometry", "seed = 4"])
    assert (recipe.learning_rate, recipe.start, recipe.seed) == (1e-3, "isometry", 4)
    with pytest.raises(HeadError, match="start"):
        cli_train.recipe_of(FTRecipe(), ["start=random"])


@pytest.mark.usefixtures("loads_tiny")
def test_a_named_recipe(tmp_path, dataset):
    out = tmp_path / "ft.safetensors"
    command = ["train", "ft", str(dataset), "--out", str(out), "--cache", str(tmp_path / "cache")]
    done = runner.invoke(main.app, [*command, "--recipe", "few-images", "--set", "epochs=2"])
    assert done.exit_code == 0, done.output
    recipe = load_checkpoint(out).training["recipe"]["ft"]
    assert (recipe["epochs"], recipe["start"], recipe["patch_quantile"]) == (2, "whitened", 1.0)
    done = runner.invoke(main.app, [*command, "--recipe", "huge"])
    assert done.exit_code == 2
    assert "paper, few-images" in done.stderr


@pytest.mark.usefixtures("loads_tiny")
def test_import(tmp_path, tiny_encoder):
    torch.manual_seed(0)
    state = FTWeights(tiny_encoder.embed_dim, tiny_encoder.width).state_dict()
    entries = {
        part: {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(part)}
        for part in ("image_proj", "patch_proj")
    }
    torch.save(entries, tmp_path / "epoch_1.pth")
    out = tmp_path / "ft.safetensors"
    done = runner.invoke(
        cli_import.app, ["checkpoint", str(tmp_path / "epoch_1.pth"), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "head ft for tiny at 96 px" in done.stdout
    for level, width in (("image", 48), ("patch", 64)):
        keys = torch.nn.functional.normalize(torch.randn(4, width))
        content = {"keys": keys, "values": torch.eye(2).repeat(2, 1)}
        torch.save(content, tmp_path / f"{level}.pt")
    files = [str(tmp_path / f"{level}.pt") for level in ("image", "patch")]
    done = runner.invoke(cli_import.app, ["memory", *files, "--out", str(tmp_path / "bank")])
    assert done.exit_code == 0, done.output
    load_head("ft", tiny_encoder, checkpoint=out).attach(MemoryBank.load(tmp_path / "bank"))
    done = runner.invoke(cli_import.app, ["memory", *files[::-1], "--out", str(tmp_path / "b")])
    assert done.exit_code == 2
    assert "needs [n, 48]" in done.stderr
