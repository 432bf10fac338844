"""Files in the form of the paper's release, written here, come in whole or are refused by name."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F

from mrad import Detector, MemoryBank
from mrad.errors import BankError, CheckpointError, DimensionError, NonFiniteError
from mrad.heads import load_head
from mrad.heads.clip import CLIPWeights
from mrad.heads.released import convert_checkpoint
from mrad.heads.text import text_part
from mrad.memory.released import convert_memory

PARTS = ("image_proj", "patch_proj", "prompt_proj", "prompt_learner")


@pytest.fixture
def released(tiny_encoder) -> dict[str, dict[str, torch.Tensor]]:
    """Entry -> state dict, as the release saves them, with the buffers it saves too."""
    width = text_part(tiny_encoder.clip).positional_embedding.shape[1]
    weights = CLIPWeights(tiny_encoder.embed_dim, tiny_encoder.width, width, 3, 3, 2)
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape) for name, value in weights.state_dict().items()}
    entries = {
        part: {
            name.removeprefix(f"{part}."): value
            for name, value in state.items()
            if name.startswith(f"{part}.")
        }
        for part in PARTS
    }
    entries["prompt_learner"]["token_prefix_pos"] = torch.zeros(1, 1, 1, width)
    return entries


def test_a_clip_checkpoint(tmp_path, tiny_encoder, tiny_bank, released, make_image):
    source, target = tmp_path / "epoch_5.pth", tmp_path / "clip.safetensors"
    torch.save(released, source)
    assert convert_checkpoint(source, target, tiny_encoder) == "clip"
    head = load_head("clip", tiny_encoder, checkpoint=target)
    assert torch.equal(
        head.weights.patch_proj["fc"][1].weight, released["patch_proj"]["fc.1.weight"]
    )
    deep = released["prompt_learner"]["compound_prompts_text.1"]
    assert torch.equal(head.weights.prompt_learner.compound_prompts_text[1], deep)
    score = Detector(tiny_encoder, tiny_bank, head).predict([make_image(1)[0]])[0].score
    assert 0 <= score <= 1


def test_an_ft_checkpoint_and_ft_out_of_a_clip_checkpoint(tmp_path, tiny_encoder, released):
    for name, entries in (("ft", PARTS[:2]), ("both", PARTS)):
        source, target = tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors"
        torch.save({entry: released[entry] for entry in entries}, source)
        assert convert_checkpoint(source, target, tiny_encoder, head="ft") == "ft"
        load_head("ft", tiny_encoder, checkpoint=target)


def test_data_parallel_and_half_precision_files(tmp_path, tiny_encoder, released):
    source, target = tmp_path / "a.pth", tmp_path / "ft.safetensors"
    half = {
        entry: {f"module.{name}": value.half() for name, value in released[entry].items()}
        for entry in PARTS[:2]
    }
    torch.save(half, source)
    convert_checkpoint(source, target, tiny_encoder)
    weight = load_head("ft", tiny_encoder, checkpoint=target).weights.image_proj["mlp1"].weight
    assert torch.equal(weight, released["image_proj"]["mlp1.weight"].half().float())


def test_broken_checkpoints_are_named(tmp_path, tiny_encoder, released):
    source, target = tmp_path / "a.pth", tmp_path / "out.safetensors"
    cases = {
        "no entry 'patch_proj'": {"image_proj": released["image_proj"]},
        "image_proj.mlp1.weight is": released
        | {"image_proj": released["image_proj"] | {"mlp1.weight": torch.ones(3, 3)}},
        "lacks prompt_proj.mlp2.bias": released
        | {"prompt_proj": {k: v for k, v in released["prompt_proj"].items() if k != "mlp2.bias"}},
        "patch_proj is no state dict but list": released | {"patch_proj": [1, 2]},
        "not a dict of entries": [1, 2],
    }
    for message, content in cases.items():
        torch.save(content, source)
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(source, target, tiny_encoder)
        assert not target.exists()


class Malicious:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_nothing_is_unpickled(tmp_path, tiny_encoder):
    source = tmp_path / "evil.pth"
    torch.save({"image_proj": Malicious()}, source)
    with pytest.raises(CheckpointError, match="holds only tensors"):
        convert_checkpoint(source, tmp_path / "x", tiny_encoder)
    source.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(BankError, match="holds only tensors"):
        convert_memory(source, source, tiny_encoder)


@pytest.fixture
def caches(tmp_path, tiny_encoder):
    """`write(**changes)` -> the two files; a change is `level_entry=tensor`."""
    torch.manual_seed(1)
    values = F.one_hot(torch.tensor([0, 1, 0, 1, 1]), 2).float()
    content = {
        "image": {"keys": F.normalize(torch.randn(5, tiny_encoder.embed_dim)), "values": values},
        "patch": {"keys": F.normalize(torch.randn(5, tiny_encoder.width)), "values": values},
    }

    def write(**changes):
        paths = []
        for level, prefix in (("image", "cache_model"), ("patch", "cache_patch_model")):
            own = {k.split("_")[1]: v for k, v in changes.items() if k.startswith(level)}
            paths.append(tmp_path / f"{prefix}_visa.pt")
            torch.save(content[level] | own, paths[-1])
        return content, paths

    return write


def test_memory_caches(tmp_path, tiny_encoder, caches, make_image):
    content, paths = caches()
    convert_memory(*paths, tiny_encoder).save(tmp_path / "bank")
    bank = MemoryBank.load(tmp_path / "bank", encoder=tiny_encoder)
    for level in ("image", "patch"):
        memory = getattr(bank, level)
        assert torch.allclose(torch.from_numpy(memory.keys), content[level]["keys"], atol=1e-6)
        assert memory.labels.tolist() == [0, 1, 0, 1, 1]
    assert bank.entries[1].source == "cache_model_visa.pt#1"
    query = tiny_encoder.encode([make_image(0)[0]])
    weights = torch.softmax(query.class_query() @ content["image"]["keys"].T, dim=-1)
    wanted = (weights @ content["image"]["values"])[0, 1]
    found = Detector(tiny_encoder, bank).head(query).image[0]
    assert float(found) == pytest.approx(float(wanted), abs=1e-6)


def test_broken_caches_are_named(tiny_encoder, caches):
    cases = [
        (
            DimensionError,
            r"cache_model_visa.pt: keys is \[5, 7\]",
            {"image_keys": torch.ones(5, 7)},
        ),
        (DimensionError, r"patch.*values is \[4, 2\]", {"patch_values": torch.eye(2).repeat(2, 1)}),
        (BankError, "patch.*not one-hot", {"patch_values": torch.full((5, 2), 0.5)}),
        (BankError, "cache_model_visa.*no tensor 'values'", {"image_values": None}),
        (NonFiniteError, "keys holds NaN", {"image_keys": torch.full((5, 48), torch.nan)}),
    ]
    for error, message, changes in cases:
        _, paths = caches(**changes)
        with pytest.raises(error, match=message):
            convert_memory(*paths, tiny_encoder)
