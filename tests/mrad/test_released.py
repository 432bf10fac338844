"""Files in the form of the paper's release, written here, come in whole or are refused by name."""

from __future__ import annotations

import pickle

import open_clip
import pytest
import torch
import torch.nn.functional as F

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.errors import BankError, CheckpointError, DimensionError, NonFiniteError
from mrad.heads import load_head
from mrad.heads.checkpoint import load_checkpoint
from mrad.heads.clip import CLIPWeights
from mrad.heads.text import text_part
from mrad.released.checkpoint import convert_checkpoint
from mrad.released.memory import convert_memory

PARTS = ("image_proj", "patch_proj", "prompt_proj", "prompt_learner")
LINEAR_768 = {"weight": (768, 768), "bias": (768,)}
RELEASE: dict[str, dict[str, tuple[int, ...]]] = {
    "image_proj": {f"{m}.{n}": s for m in ("mlp1", "mlp2") for n, s in LINEAR_768.items()},
    "prompt_proj": {f"{m}.{n}": s for m in ("mlp1", "mlp2") for n, s in LINEAR_768.items()},
    "patch_proj": {
        "fc.0.weight": (768, 1024),
        "fc.0.bias": (768,),
        "fc.1.weight": (768, 1024),
        "fc.1.bias": (768,),
    },
    "prompt_learner": {
        "ctx_pos": (1, 1, 12, 768),
        "ctx_neg": (1, 1, 12, 768),
        **{f"compound_prompts_text.{i}": (4, 768) for i in range(8)},
        **{f"compound_prompt_projections.{i}.weight": (896, 768) for i in range(8)},
        **{f"compound_prompt_projections.{i}.bias": (896,) for i in range(8)},
        "mlp.c_fc.weight": (3072, 768),
        "mlp.c_fc.bias": (3072,),
        "mlp.c_proj.weight": (768, 3072),
        "mlp.c_proj.bias": (768,),
        "token_prefix_pos": (1, 1, 1, 768),
        "token_suffix_pos": (1, 1, 64, 768),
        "token_prefix_neg": (1, 1, 1, 768),
        "token_suffix_neg": (1, 1, 64, 768),
        "tokenized_prompts_pos": (1, 1, 77),
        "tokenized_prompts_neg": (1, 1, 77),
    },
}
"""What the release's classes save for ViT-L/14-336, read off their constructors: parameters and
buffers, used and unused. Not derived from this project's own list of names, which is on trial."""


def as_released() -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint as the release writes it: its names, shapes and types, seeded values."""
    torch.manual_seed(0)
    return {
        part: {
            name: torch.zeros(shape, dtype=torch.int32)
            if name.startswith("tokenized")
            else 0.02 * torch.randn(shape)
            for name, shape in entries.items()
        }
        for part, entries in RELEASE.items()
    }


@pytest.fixture(scope="module")
def wide_encoder() -> Encoder:
    """The widths of ViT-L/14-336 and of its text tower, with as few blocks as the prompts allow."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(
        layers=2, width=1024, head_width=64, patch_size=14, image_size=28
    )
    text = open_clip.CLIPTextCfg(vocab_size=49408, width=768, heads=12, layers=9)
    clip = open_clip.model.CLIP(768, vision, text, quick_gelu=True)
    return Encoder.from_clip(clip, name="wide", device="cpu")


def test_the_release_s_own_clip_checkpoint_comes_in_and_says_what_was_left_out(
    tmp_path, wide_encoder, make_image
):
    content, source, target = as_released(), tmp_path / "test_on_mvtec.pth", tmp_path / "clip.st"
    torch.save(content, source)
    done = convert_checkpoint(source, target, wide_encoder)
    assert done.head == "clip"
    left_out = {name.split(".")[1] for name in done.unused}
    assert left_out == {"compound_prompt_projections", "mlp"}
    assert len(done.unused) == 20
    loaded = load_checkpoint(target)
    assert loaded.training["origin"]["unused"] == list(done.unused)
    unused = set(done.unused) | {
        f"prompt_learner.{name}" for name in RELEASE["prompt_learner"] if name.startswith("token")
    }
    kept = {f"{part}.{name}" for part in RELEASE for name in RELEASE[part]} - unused
    assert loaded.tensors.keys() == kept
    for name in kept:
        part, own = name.split(".", 1)
        assert torch.equal(loaded.tensors[name], content[part][own])
    samples = [Sample(*flip(make_image(seed, (28, 28), defect=seed > 0))) for seed in range(2)]
    bank = MemoryBank.from_samples(wide_encoder, samples)
    detector = Detector(wide_encoder, bank, "clip", checkpoint=target)
    assert 0 <= detector.predict([make_image(3, (28, 28))[0]])[0].score <= 1


def flip(made):
    """Image, mask -> image, anomalous, mask."""
    image, mask = made
    return image, mask is not None, mask


def test_an_entry_that_the_release_does_not_have_is_refused_by_name(tmp_path, wide_encoder):
    content, source = as_released(), tmp_path / "other.pth"
    content["prompt_learner"]["gate.weight"] = torch.zeros(2, 2)
    torch.save(content, source)
    with pytest.raises(CheckpointError, match=r"unknown entries: prompt_learner\.gate\.weight"):
        convert_checkpoint(source, tmp_path / "out", wide_encoder)


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
    assert convert_checkpoint(source, target, tiny_encoder).head == "clip"
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
        assert convert_checkpoint(source, target, tiny_encoder, head="ft").head == "ft"
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
