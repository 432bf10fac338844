"""Training learns, repeats itself by seed, stops at NaN, and writes what it promises."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch
from mrad_indexer.training.clip import train_clip
from mrad_indexer.training.data import training_set
from mrad_indexer.training.ft import Memory, train_ft
from mrad_indexer.training.loop import History
from mrad_indexer.training.recipe import CLIPRecipe, FTRecipe
from mrad_indexer.training.run import load_ft, train
from mrad_indexer.training.start import ft_start, whitened_start
from PIL import Image
from torch import nn

from mrad import Detector, Encoder, MemoryBank
from mrad.errors import CheckpointError, NonFiniteError
from mrad.heads.checkpoint import load_checkpoint

SHORT = FTRecipe(epochs=2, batch_size=4)


def test_the_defaults_are_the_paper_s():
    ft, clip = FTRecipe(), CLIPRecipe()
    assert (ft.epochs, ft.batch_size, ft.learning_rate, ft.final_learning_rate) == (
        1,
        8,
        4e-4,
        1e-6,
    )
    assert (ft.beta1, ft.beta2, ft.image_quantile, ft.patch_quantile) == (0.5, 0.999, 0.95, 0.8)
    assert (clip.epochs, clip.n_ctx, clip.depth, clip.n_deep) == (5, 12, 9, 4)


def test_the_cosine_is_for_ft_alone_and_a_clip_training_stays_at_one_rate(
    tiny_encoder, records, tmp_path
):
    def rates(head: str, **stages: object) -> dict[str, list[float]]:
        path = tmp_path / f"{head}.safetensors"
        train(head, tiny_encoder, records, path, tmp_path / "cache", **stages)  # type: ignore[arg-type]
        rows = list(csv.DictReader(path.with_suffix(".csv").open()))
        return {
            stage: [float(row["learning_rate"]) for row in rows if row["stage"] == stage]
            for stage in dict.fromkeys(row["stage"] for row in rows)
        }

    alone = rates("ft")["ft"]
    assert alone[0] == 4e-4
    assert alone[-1] < 4e-4
    both = rates("clip", clip=CLIPRecipe(epochs=2))
    assert both.keys() == {"ft", "clip"}
    assert set(both["ft"]) == set(both["clip"]) == {4e-4}
    assert set(rates("clip", ft=FTRecipe(epochs=2), clip=CLIPRecipe(epochs=1))["ft"]) != {4e-4}


def test_masks_and_memory_are_the_bank_s(tiny_encoder, training, records):
    own = MemoryBank.from_samples(tiny_encoder, [record.sample() for record in records])
    assert np.abs(training.bank.image.keys - own.image.keys).max() < 1e-5
    assert np.abs(training.bank.patch.keys - own.patch.keys).max() < 1e-3
    assert training.bank.patch.labels.tolist() == own.patch.labels.tolist()
    assert training.masked.tolist() == [i != 10 for i in range(12)]
    masks = training.masks([0, 1, 10])
    assert masks.shape == (3, 96, 96)
    wanted = Image.open(records[0].mask).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.array_equal(masks[0].numpy(), np.asarray(wanted) / 255 > 0.5)
    assert masks[1].sum() == masks[2].sum() == 0


@pytest.mark.parametrize("start", ["linear", "isometry", "whitened"])
def test_ft_learns(tiny_encoder, training, start):
    history = History()
    recipe = FTRecipe(start=start, epochs=12, learning_rate=2e-3)
    train_ft(tiny_encoder, training, recipe, history)
    assert history.epoch_mean("ft", 12) < 0.9 * history.epoch_mean("ft", 1)
    assert history.steps[0].learning_rate == 2e-3
    assert len(history.steps) == 24  # the last, partial batch is kept


def test_an_isometry_starts_as_tf(tiny_encoder, training):
    weights = ft_start(tiny_encoder, training, FTRecipe(start="isometry"))
    query = training.features.batch([0]).class_query()
    keys = torch.from_numpy(training.bank.image.keys)
    projected = weights.image_query(query) @ weights.image_key(keys).T
    assert torch.allclose(projected, query @ keys.T, atol=1e-5)


@pytest.mark.parametrize("width", [12, 4], ids=["wide", "narrow"])
def test_a_whitened_start_centres_and_evens_out(width):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=generator) * torch.tensor([9, 3, 1, 0.5, 0.1, 0.05])
    rows = torch.randn(400, 6, generator=generator) @ mixed.T + 5
    layer = nn.Linear(6, width)
    recipe = FTRecipe(start="whitened", sharpness=3.0, shrinkage=1e-6)
    whitened_start(layer, [rows[:150], rows[150:]], recipe, torch.Generator().manual_seed(1))
    done = layer(rows).detach()
    assert done.mean(dim=0).abs().max() < 1e-2
    assert done.square().sum(dim=1).mean() == pytest.approx(3.0, rel=0.05)
    variances = torch.linalg.svdvals(done - done.mean(dim=0)).square() / len(rows)
    kept = min(6, width)
    assert variances[:kept] == pytest.approx(torch.full((kept,), 3.0 / kept).numpy(), rel=0.1)
    assert (variances[kept:] < 1e-6).all()


def test_what_is_all_the_same_has_a_whitened_start_too():
    layer = nn.Linear(6, 6)
    recipe = FTRecipe(start="whitened")
    whitened_start(layer, [torch.ones(5, 6)], recipe, torch.Generator().manual_seed(1))
    assert layer(torch.ones(1, 6)).abs().max() < 1
    with pytest.raises(NonFiniteError, match="cannot start"):
        whitened_start(layer, [torch.full((5, 6), torch.nan)], recipe, torch.Generator())


def test_the_same_seed_gives_the_same_weights(tiny_encoder, training):
    runs = [
        train_ft(tiny_encoder, training, SHORT.model_copy(update={"seed": seed}), History())
        for seed in (1, 1, 2)
    ]
    states = [torch.cat([v.flatten() for v in run.state_dict().values()]) for run in runs]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_an_image_does_not_retrieve_itself(tiny_encoder, training):
    recipe = FTRecipe(start="isometry", image_quantile=0.9)
    memory = Memory(training, recipe, tiny_encoder.device)
    query = training.features.batch(list(range(12))).class_query()
    cosine = query @ memory.image_keys.T
    assert torch.equal(cosine.argmax(dim=1), torch.arange(12))  # without a mask, it would
    limit = torch.quantile(cosine, 0.9, dim=1)
    assert (cosine.diagonal() > limit).all()


def test_nan_is_found_at_its_step(tiny_encoder, training):
    poisoned = training.features.class_feature.clone()
    poisoned[3] = torch.nan
    features = dataclasses.replace(training.features, class_feature=poisoned)
    data = dataclasses.replace(training, features=features)
    with pytest.raises(NonFiniteError, match=r"image loss is nan in epoch 1, step \d"):
        train_ft(tiny_encoder, data, SHORT, History())


def test_clip_trains_prompts_and_nothing_else(tiny_encoder, training):
    history = History()
    ft = train_ft(tiny_encoder, training, SHORT, history)
    recipe = CLIPRecipe(epochs=6, batch_size=4, n_ctx=3, learning_rate=5e-3)
    weights = train_clip(tiny_encoder, training, ft, recipe, history)
    assert history.epoch_mean("clip", 6) < 0.95 * history.epoch_mean("clip", 1)
    assert set(history.steps[-1].losses) == {"focal", "dice", "normal_dice", "total"}
    for name, value in ft.state_dict().items():
        assert torch.equal(weights.state_dict()[name], value)
    assert len(weights.prompt_learner.compound_prompts_text) == 3  # 4 text blocks, not 9


def test_a_whole_run(tmp_path, tiny_encoder, records):
    out = tmp_path / "clip.safetensors"
    result = train(
        "clip",
        tiny_encoder,
        records,
        out,
        tmp_path / "cache",
        ft=SHORT,
        clip=CLIPRecipe(epochs=2, n_ctx=3),
        bank_path=tmp_path / "bank",
    )
    bank = MemoryBank.load(tmp_path / "bank", encoder=tiny_encoder)
    loaded = load_checkpoint(out)
    assert loaded.bank_digest == bank.digest is not None
    assert loaded.identity == tiny_encoder.identity
    assert loaded.training["recipe"]["ft"]["epochs"] == 2
    assert loaded.training["images"] == 12
    assert result.speedup() > 1
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == {"ft", "clip"}
    assert float(rows[0]["total"]) > 0
    assert Image.open(out.with_suffix(".png")).size[0] > 800
    score = Detector(tiny_encoder, bank, "clip", checkpoint=out).predict([records[0].image])
    assert 0 <= score[0].score <= 1


def test_prompts_on_an_earlier_ft(tmp_path, tiny_clip, tiny_encoder, records):
    ft, out = tmp_path / "ft.safetensors", tmp_path / "clip.safetensors"
    train("ft", tiny_encoder, records, ft, tmp_path / "cache", ft=SHORT)
    result = train(
        "clip",
        tiny_encoder,
        records,
        out,
        tmp_path / "cache",
        clip=CLIPRecipe(epochs=1, n_ctx=3),
        start_from=ft,
    )
    assert list(result.history.epochs) == ["clip"]
    names = load_ft(ft, tiny_encoder).state_dict().items()
    assert all(torch.equal(load_checkpoint(out).tensors[name], value) for name, value in names)
    other = Encoder.from_clip(tiny_clip, 64, name="other", device="cpu")
    with pytest.raises(CheckpointError, match=r"tiny at 96 px.*other at 64 px"):
        train("clip", other, records, out, tmp_path / "cache", start_from=ft)


def test_a_memory_given_is_the_one_retrieved_from(tmp_path, tiny_encoder, tiny_bank, records):
    data = training_set(tiny_encoder, records, tmp_path, bank=tiny_bank)
    assert data.bank is tiny_bank
