"""Weights: the same ones from any kind of file, and what is said when there are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from mrad import Encoder, models
from mrad.encoder import weights
from mrad.encoder.kernels import QUICK
from mrad.encoder.weights import list_weights, load_clip, locate, read_state, search_paths, verify
from mrad.errors import EncoderError, WeightsNotFoundError

SMALL = "mrad-test-small"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights of one's own, a model that open_clip knows, and no way to a hub."""
    folder = tmp_path / "weights"
    monkeypatch.setenv("MRAD_WEIGHTS", str(folder))
    monkeypatch.setattr(weights, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, SMALL, CONFIG)
    return folder


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    """A CLIP of `CONFIG`, as OpenAI's are: half precision, trained with QuickGELU."""
    torch.manual_seed(3)
    built = open_clip.model.CLIP(
        32,
        open_clip.CLIPVisionCfg(**CONFIG["vision_cfg"]),
        open_clip.CLIPTextCfg(**CONFIG["text_cfg"]),
    )
    return built.half().float().eval()


def write(kind: str, clip: nn.Module, path: Path) -> Path:
    """The weights of `clip` as a file of that kind, half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # OpenAI's names are those of open_clip, so a state dict under them is what the archive holds.
    state = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    if kind == "safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    elif kind == "torch":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.jit.save(torch.jit.script(Flat(state)), str(path))
    return path


class Flat(nn.Module):
    """A module whose state dict has the given (dotted) names."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(last, nn.Parameter(value, requires_grad=False))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def is_quick(encoder: Encoder) -> bool:
    return encoder.name.endswith("-quickgelu")


def test_the_same_weights_from_any_file_are_the_same_encoder(clip, tmp_path):
    kinds = {"safetensors": "a.safetensors", "torch": "b.pt", "wrapped": "c.pth"}
    encoders = [
        Encoder.load(SMALL, write(kind, clip, tmp_path / name), device="cpu")
        for kind, name in kinds.items()
    ]
    wanted = Encoder.from_clip(clip, name=SMALL, device="cpu")
    pixels = torch.randn(1, 3, 32, 32)
    for encoder in encoders:
        assert encoder.identity == wanted.identity
        assert torch.equal(encoder.encode_pixels(pixels).patch, wanted.encode_pixels(pixels).patch)


def test_a_torchscript_archive_has_the_same_digest_and_openais_activation(clip, tmp_path):
    path = write("torchscript", clip, tmp_path / "ViT.pt")
    archive = Encoder.load(SMALL, path, device="cpu")
    plain = Encoder.load(SMALL, write("torch", clip, tmp_path / "plain.pt"), device="cpu")
    assert archive.identity.digest == plain.identity.digest
    assert archive.name == f"{SMALL}-quickgelu"
    assert archive.identity != plain.identity  # the activation makes other features
    assert any(isinstance(m, QuickGELU) for m in archive.clip.modules())
    pixels = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(
        archive.encode_pixels(pixels).class_feature, plain.encode_pixels(pixels).class_feature
    )


@pytest.mark.parametrize(
    ("name", "file", "quick"),
    [
        ("ViT-L-14-336", "anything.safetensors", True),  # all that was published has QuickGELU
        ("ViT-L-14-336-quickgelu", "anything.pt", True),
        ("ViT-B-32", "openai.pt", True),
        ("ViT-B-32", "laion2b_s34b_b79k.pt", False),
        ("ViT-B-32", "mine.pt", False),
        (SMALL, "openai.pt", False),
    ],
)
def test_the_activation_follows_what_was_published(name, file, quick, tmp_path):
    path = tmp_path / file
    torch.save({}, path)
    found, config = weights._resolve(name, path)
    assert found == path
    assert bool(config.get("quick_gelu")) is quick


def test_pixels_are_normalised_as_the_published_weights_want(tmp_path):
    torch.save({}, tmp_path / "laion2b_s32b_b82k.pt")
    config = weights._resolve("ViT-L-14", tmp_path / "laion2b_s32b_b82k.pt")[1]
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)


def test_tags_are_found_in_the_search_paths_first_match_wins(home, clip, monkeypatch, tmp_path):
    assert locate(SMALL, "mine") is None
    cached = write("torch", clip, search_paths()[-1] / SMALL / "mine.pt")
    assert locate(SMALL, "mine") == cached
    own = write("safetensors", clip, home / SMALL / "mine.safetensors")
    assert locate(SMALL, "mine") == own
    second = tmp_path / "second"
    monkeypatch.setenv("MRAD_WEIGHTS", f"{second}:{home}")
    assert locate(SMALL, "mine") == own
    listed = {(file.name, file.pretrained, file.path) for file in list_weights()}
    assert {(SMALL, "mine", own), (SMALL, "mine", cached)} <= listed
    shipped = {file.name for file in list_weights() if file.shipped}
    assert shipped == set(models.shipped())


def test_no_hub_says_what_was_tried_where_it_looked_and_how_to_help_oneself(home, monkeypatch):
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(WeightsNotFoundError) as caught:
        Encoder.load("ViT-L-14-336", pretrained="openai")
    text = str(caught.value)
    for part in (
        "weights 'openai' of ViT-L-14-336 are not on this machine",
        "ConnectionError: Name or service not known",
        str(home / "ViT-L-14-336" / "openai"),
        str(search_paths()[-1]),
        ".safetensors,.pt",
        "mrad weights fetch ViT-L-14-336 openai",
        "MRAD_WEIGHTS",
        "pass its path",
    ):
        assert part in text


def test_a_download_is_kept_under_the_tags_name(clip, monkeypatch, tmp_path):
    source = write("torch", clip, tmp_path / "hub" / "ViT-B-32.pt")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_, **__: str(source))
    path = weights.fetch("ViT-B-32", "openai")
    assert path == search_paths()[-1] / "ViT-B-32" / "openai.pt" == locate("ViT-B-32", "openai")
    assert weights.fetch("ViT-B-32", "openai") == path
    assert source.read_bytes() == path.read_bytes()


def test_unknown_names_tags_and_paths_have_their_own_messages(tmp_path, clip):
    cases = {
        ("ViT-B-32", None): "is not shipped inside .*name a pretrained tag",
        ("ViT-B-32", "no_such_tag"): "no tag 'no_such_tag' for ViT-B-32 .it has: openai",
        ("ViT-B-32", tmp_path / "gone.pt"): "no checkpoint at .*gone.pt",
        ("ViT-B-32", "gone.safetensors"): "no checkpoint at gone.safetensors",
    }
    for (name, pretrained), message in cases.items():
        with pytest.raises(WeightsNotFoundError, match=message):
            load_clip(name, pretrained)
    with pytest.raises(EncoderError, match="knows no model 'ViT-Z-99'"):
        load_clip("ViT-Z-99", write("torch", clip, tmp_path / "a.pt"))


def test_weights_of_another_model_name_what_does_not_fit(clip, tmp_path):
    state = clip.state_dict()
    torch.save({k: v for k, v in state.items() if k != "visual.proj"}, tmp_path / "less.pt")
    with pytest.raises(EncoderError, match=r"does not fit this model: .*visual\.proj"):
        load_clip(SMALL, tmp_path / "less.pt")
    torch.save(state | {"visual.proj": torch.zeros(3, 3)}, tmp_path / "shape.pt")
    with pytest.raises(EncoderError, match=r"does not fit this model: .*visual\.proj"):
        load_clip(SMALL, tmp_path / "shape.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"visual.proj": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "bare.pt"):
        with pytest.raises(EncoderError, match="not a readable checkpoint"):
            load_clip(SMALL, tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_garbage_truncated_and_empty_files_are_no_checkpoints(suffix, clip, tmp_path):
    kind = "safetensors" if suffix == ".safetensors" else "torch"
    whole = write(kind, clip, tmp_path / f"whole{suffix}").read_bytes()
    for index, data in enumerate((b"", b"not weights", whole[: len(whole) // 2])):
        path = tmp_path / f"broken{index}{suffix}"
        path.write_bytes(data)
        with pytest.raises(EncoderError, match="not a readable checkpoint"):
            read_state(path)


def test_a_file_that_holds_no_state_dict_says_so(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(EncoderError):
        read_state(tmp_path / "tensor.pt")


def test_verify_counts_without_building_a_model(clip, tmp_path):
    facts = verify(write("safetensors", clip, tmp_path / "a.safetensors"))
    state = clip.state_dict()
    assert facts["tensors"] == len(state)
    assert facts["parameters"] == sum(value.numel() for value in state.values())
    assert len(facts["sha256"]) == 64
    assert facts["torchscript"] is False
    assert verify(write("torchscript", clip, tmp_path / "b.pt"))["torchscript"] is True


def test_the_constant_of_quick_gelu_is_open_clips():
    x = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(QuickGELU()(x), torch.nn.functional.silu(QUICK * x) / QUICK)
