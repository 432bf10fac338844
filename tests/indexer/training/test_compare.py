"""Which recipe so many images are enough for, what is kept aside, and the comparison at the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mrad_indexer.cli import main
from mrad_indexer.cli import train as cli_train
from mrad_indexer.datasets import Record, read_dataset
from mrad_indexer.training import compare
from mrad_indexer.training.compare import keep_aside, without
from mrad_indexer.training.recipe import FTRecipe, check_steps, ft_recipe, recipe_for, steps_of
from typer.testing import CliRunner

from mrad import Encoder, MemoryBank
from mrad.errors import HeadError
from mrad.heads.checkpoint import load_checkpoint


def some(good: int, bad: int, name: str = "a") -> list[Record]:
    return [
        Record(Path(f"{name}{i}.png"), i >= good, source=f"{name}{i}", object_name=name)
        for i in range(good + bad)
    ]


def test_every_class_of_every_object_is_kept_aside_by_its_share():
    records = some(40, 20) + some(100, 50, "b")
    train, aside = keep_aside(records, 0.2)
    assert sorted([*train, *aside], key=records.index) == records
    kinds = Counter((record.object_name, record.anomalous) for record in aside)
    assert kinds == {("a", False): 8, ("a", True): 4, ("b", False): 20, ("b", True): 10}
    again = keep_aside(records[::-1], 0.2)[1]
    assert {record.source for record in again} == {record.source for record in aside}


@pytest.mark.parametrize(("good", "bad", "share"), [(8, 8, 0.2), (100, 20, 0.2), (40, 40, 0.0)])
def test_where_too_few_are_left_to_say_anything_none_is_kept(good, bad, share):
    assert keep_aside(some(good, bad), share) == (some(good, bad), [])


def test_the_recipe_follows_the_number_of_images():
    assert [recipe_for(n) for n in (7, 50, 400, 1_592)] == ["few-images"] * 4
    assert [recipe_for(n) for n in (1_593, 2_162)] == ["paper"] * 2
    assert steps_of(FTRecipe(), 50) == 7
    with pytest.raises(HeadError, match=r"7 steps over these 50 images.*few-images.*epochs=29"):
        check_steps(ft_recipe("paper"), 50)
    check_steps(FTRecipe(epochs=29), 50)
    check_steps(ft_recipe("few-images"), 50)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, make_image) -> Path:
    """Thirty good and thirty defective ones, with masks."""
    root = tmp_path_factory.mktemp("parts")
    for seed in range(60):
        image, mask = make_image(seed, (48, 40), defect=seed % 2 == 1)
        for kind, picture in (("good" if mask is None else "defect", image), ("masks", mask)):
            if picture is not None:
                (root / kind).mkdir(exist_ok=True)
                picture.save(root / kind / f"{seed:02}.png")
    return root


def test_the_trained_head_is_compared_on_images_that_it_has_not_seen(
    tmp_path, parts, tiny_encoder, monkeypatch
):
    monkeypatch.setattr(Encoder, "load", lambda *names, **options: tiny_encoder)
    out, bank = tmp_path / "ft.safetensors", tmp_path / "bank"
    command = ["train", "ft", str(parts), "--out", str(out), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(main.app, [*command, "--save-bank", str(bank)])
    assert done.exit_code == 0, done.output
    assert "48 images to train on: recipe few-images" in done.stderr
    assert "on 12 images kept aside" in done.stdout
    heads = [
        line.split()[-1]
        for line in done.stdout.splitlines()
        if line.split()[0:1]
        and line.split()[0][0].isdigit()
        and "AUROC" not in line
        and len(line.split()) == 4
    ]
    assert heads[:2] == ["ft:ft", "tf"]
    assert load_checkpoint(out).training["images"] == 48
    assert len(MemoryBank.load(bank).entries) == 60  # those kept aside are remembered, too
    asked: list[int] = []
    judged = compare.evaluate
    monkeypatch.setattr(
        compare,
        "evaluate",
        lambda detectors, images, **options: (
            asked.append(len(next(iter(detectors.values())).bank.entries))
            or judged(detectors, images, **options)
        ),
    )
    done = CliRunner().invoke(main.app, [*command, "--bank", str(bank)])
    assert done.exit_code == 0, done.output
    assert asked == [48]  # of the memory given, nothing that is judged
    refused = CliRunner().invoke(main.app, [*command, "--recipe", "paper"])
    assert refused.exit_code == 2
    assert "few-images" in refused.stderr


def test_a_copy_of_an_image_is_taken_out_by_its_features(tmp_path, parts, tiny_encoder):
    records = read_dataset(parts).records
    records = [*records[:4], *records[-4:]]  # good ones, then defective ones
    samples = [record.sample() for record in records]
    renamed = [type(s)(s.image, s.anomalous, s.mask, f"other/{i}") for i, s in enumerate(samples)]
    bank = MemoryBank.from_samples(tiny_encoder, renamed)
    assert len(without(bank, tiny_encoder, records[2:5]).entries) == 5


def test_a_better_head_that_needs_no_training_is_named(capsys):
    class Item:
        def __init__(self, name: str, value: float) -> None:
            self.name, self.value = name, value

        def mean(self, level: str, metric: str) -> float:
            return self.value

    class Found:
        candidates = (Item("ft:x", 0.34), Item("tf", 0.71))

    found = compare.Comparison(Found(), {"nn": "no good part"})  # type: ignore[arg-type]
    cli_train.show_comparison(found, 10)
    said = capsys.readouterr()
    assert "tf orders these images better than ft:x" in said.err
    assert "nn was not compared: no good part" in said.out
    cli_train.show_comparison(None, 0)
    assert "too few images" in capsys.readouterr().out
