"""A checkpoint knows its head and its encoder, and says what is wrong with it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mrad import Encoder
from mrad.errors import CheckpointError
from mrad.heads import load_head
from mrad.heads.checkpoint import load_checkpoint, save_checkpoint


def test_round_trip(tiny_encoder, make_checkpoint, make_state):
    loaded = load_checkpoint(make_checkpoint("ft", tiny_encoder))
    assert (loaded.head, loaded.identity) == ("ft", tiny_encoder.identity)
    assert (loaded.bank_digest, loaded.training) == ("feed", {"images": 3})
    state = make_state("ft", tiny_encoder)
    assert loaded.tensors.keys() == state.keys()
    assert all(torch.equal(loaded.tensors[name], state[name]) for name in state)


def test_a_foreign_encoder_is_refused_by_both_names(tiny_clip, tiny_encoder, make_checkpoint):
    path = make_checkpoint("ft", tiny_encoder)
    other = Encoder.from_clip(tiny_clip, 64, name="other", device="cpu")
    with pytest.raises(CheckpointError, match=r"tiny at 96 px.*other at 64 px"):
        load_head("ft", other, checkpoint=path)


def test_another_head_s_checkpoint_is_refused(tiny_encoder, make_checkpoint):
    with pytest.raises(CheckpointError, match="belongs to head 'ft', not 'clip'"):
        load_head("clip", tiny_encoder, checkpoint=make_checkpoint("ft", tiny_encoder))


def test_wrong_entries_are_named(tiny_encoder, make_checkpoint, make_state):
    state = make_state("ft", tiny_encoder)
    name = "patch_proj.fc.1.weight"
    broken = {
        f"lacks {name}": {k: v for k, v in state.items() if k != name},
        name + r" is \[48, 63\]": state | {name: state[name][:, :63]},
        name + " holds NaN": state | {name: state[name] * torch.nan},
        "unknown entries: more": state | {"more": torch.ones(1)},
    }
    for message, tensors in broken.items():
        if "NaN" in message:
            with pytest.raises(CheckpointError, match=message):
                make_checkpoint("ft", tiny_encoder, tensors)
            continue
        path = make_checkpoint("ft", tiny_encoder, tensors)
        with pytest.raises(CheckpointError, match=message):
            load_head("ft", tiny_encoder, checkpoint=path)


def test_files_that_are_no_checkpoint(tmp_path, tiny_encoder):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match="mrad import checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no head of this project"):
        load_checkpoint(path)
    save_file({"weight": torch.ones(2)}, path, {"mrad": '{"format_version": 99}'})
    with pytest.raises(CheckpointError, match="newer version"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, tiny_encoder, make_state):
    path, state = tmp_path / "ft.safetensors", make_state("ft", tiny_encoder)
    save_checkpoint(path, "ft", state, {}, tiny_encoder.identity)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="nothing was written"):
        save_checkpoint(path, "ft", {"x": torch.tensor(torch.inf)}, {}, tiny_encoder.identity)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ft.safetensors"]
