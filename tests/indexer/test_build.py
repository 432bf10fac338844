"""`mrad build`: what it makes, what it leaves out, and what a kill does to it."""

from __future__ import annotations

import io
import json
import shutil
import signal
import threading
import time
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch
from mrad_client.batch.journal import Journal, JournalError
from mrad_indexer.build.build import BuildOptions, Plan, build, work_folder
from mrad_indexer.build.encode import (
    Skipped,
    decode_record,
    encode_shard,
    from_bytes,
    thumbnail_of,
    to_bytes,
)
from mrad_indexer.datasets import read_dataset
from PIL import Image

from mrad import Encoder, MemoryBank
from mrad.errors import BankCorruptError, BankError, DataError, ImageError
from mrad.files import atomic_write_bytes
from mrad.memory.level import COLUMNS

OPTIONS = BuildOptions(batch_size=3, shard=6)


def same_keys(one, two):
    """Whether two banks' indexes are equal byte for byte."""
    names = ("image.faiss", "patch.faiss")
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_the_bank_is_the_one_built_in_memory(tmp_path, boards, tiny_encoder):
    dataset = read_dataset(boards)
    built = build(tiny_encoder, dataset, tmp_path / "bank", OPTIONS)
    records = [r for r in dataset.records if r.image.stem != "broken"]
    direct = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in records])
    loaded = MemoryBank.load(tmp_path / "bank", encoder=tiny_encoder)
    for level in ("image", "patch"):
        mine, theirs = getattr(loaded, level), getattr(direct, level)
        np.testing.assert_allclose(mine.keys, theirs.keys, atol=1e-5)
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert mine.size.tolist() == theirs.size.tolist()
    assert [e.source for e in loaded.entries] == [r.source for r in records]
    assert [item.source for item in built.skipped] == ["good/broken.png"]
    assert set(loaded.thumbnails) == {entry.entry_id for entry in loaded.entries}
    assert not work_folder(tmp_path / "bank").exists()


def test_every_layout_gives_the_same_keys(tmp_path, boards, mrad, tiny_options):
    """The same images as a plain folder, in MVTec's layout, and as lists."""
    records = [r for r in read_dataset(boards).records if r.image.stem != "broken"]
    rows = []
    for record in records:
        kind = "blob" if record.anomalous else "good"
        target = tmp_path / "set/board/test" / kind / record.image.name
        copy(record.image, target)
        if record.mask:
            copy(record.mask, tmp_path / f"set/board/ground_truth/{kind}/{record.mask.name}")
        mask = str(record.mask or "")
        rows.append({"image": str(record.image), "label": kind == "blob", "mask": mask})
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first = None
    for data in (boards, tmp_path / "set", tmp_path / "list.csv", tmp_path / "list.jsonl"):
        out = tmp_path / "banks" / data.name
        assert mrad("build", data, "--out", out, *tiny_options).exit_code == 0
        bank = MemoryBank.load(out)
        first = first or bank
        assert len(bank.entries) == 16
        for level in ("image", "patch"):
            one, two = getattr(first, level), getattr(bank, level)
            best = one.keys @ two.keys.T
            assert (best.max(axis=1) > 0.99999).all(), data
            assert (two.labels[best.argmax(axis=1)] == one.labels).all()


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_shards_do_not_depend_on_each_other(boards, tiny_encoder):
    records = read_dataset(boards).records
    decoded = [decode_record(r, tiny_encoder.prepare, thumbnails=True) for r in records]
    shard = encode_shard(tiny_encoder, decoded[6:12], BuildOptions(3))
    copy = from_bytes(to_bytes(shard))
    assert copy.entries == shard.entries
    assert copy.thumbnails == shard.thumbnails
    for level in ("image", "patch", "local"):
        found, own = copy.level(level), shard.level(level)
        assert len(found)
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(found, column), getattr(own, column))
        assert set(found.entry) == set(range(len(shard.entries)))
    assert to_bytes(copy) == to_bytes(shard)
    with pytest.raises(BankCorruptError):
        from_bytes(to_bytes(shard)[:100])


@pytest.mark.parametrize("patch_keys", ["all", 5])
def test_patch_keys_finer_than_regions(tmp_path, boards, tiny_encoder, patch_keys):
    """Cut off and resumed as the paper's; the bank tells later lessons what a region adds."""
    dataset = read_dataset(boards)
    options = replace(OPTIONS, patch_keys=patch_keys)
    with pytest.raises(ImageError):
        build(tiny_encoder, dataset, tmp_path / "cut", replace(options, strict=True))
    with pytest.raises(JournalError, match="patch_keys"):
        build(tiny_encoder, dataset, tmp_path / "cut", OPTIONS)
    assert build(tiny_encoder, dataset, tmp_path / "cut", options).resumed > 0
    whole = build(tiny_encoder, dataset, tmp_path / "whole", options).bank
    assert same_keys(tmp_path / "cut", tmp_path / "whole")
    records = [r for r in dataset.records if r.image.stem != "broken"]
    samples = [record.sample() for record in records]
    direct = MemoryBank.from_samples(tiny_encoder, samples, patch_keys=patch_keys)
    assert whole.patch.labels.tolist() == direct.patch.labels.tolist()
    assert MemoryBank.load(tmp_path / "cut").patch_keys == patch_keys
    if patch_keys == "all":
        assert len(whole.patch) > 100 * len(whole.entries) // 4
        np.testing.assert_allclose(whole.patch.keys, direct.patch.keys, atol=1e-5)


def test_a_coreset_of_all_patches(tmp_path, mrad, boards, tiny_options):
    command = ["build", boards, *tiny_options, "--patch-keys", "all", "--out"]
    done = mrad(*command, tmp_path / "b", "--coreset", 100)
    assert done.exit_code == 0, done.output
    bank, facts = (
        MemoryBank.load(tmp_path / "b"),
        json.loads((tmp_path / "b/bank.json").read_text()),
    )
    assert 99 <= len(bank.patch) <= 101
    assert 0 < bank.patch.labels.sum() < 50
    assert facts["metadata"]["build"]["coreset"] == 100
    assert (facts["metadata"]["patch_keys"], bank.patch_keys) == ("all", "all")
    refused = mrad(*command, tmp_path / "c", "--coreset", 2)
    assert refused.exit_code != 0
    assert "or more" in refused.output
    unknown = mrad("build", boards, *tiny_options, "--patch-keys", "some", "--out", tmp_path / "d")
    assert unknown.exit_code == 2
    assert "regions" in unknown.output


def test_strict_stops_and_keeps_what_was_done(tmp_path, boards, tiny_encoder):
    dataset = read_dataset(boards)
    with pytest.raises(ImageError, match=r"broken\.png"):
        build(tiny_encoder, dataset, tmp_path / "b", BuildOptions(3, strict=True, shard=6))
    assert not (tmp_path / "b").exists()
    assert build(tiny_encoder, dataset, tmp_path / "b", OPTIONS).resumed > 0


def test_what_was_read_before_an_error_is_kept(tmp_path, make_image, tiny_encoder):
    """The images of the next shard are read while the last batches of one are under way."""
    (tmp_path / "data/good").mkdir(parents=True)
    for seed in range(9):
        make_image(seed, (64, 64))[0].save(tmp_path / f"data/good/{seed}.png")
    (tmp_path / "data/good/6.png").write_bytes(b"no image")
    dataset, out = read_dataset(tmp_path / "data"), tmp_path / "b"
    with pytest.raises(ImageError, match=r"6\.png"):
        build(tiny_encoder, dataset, out, BuildOptions(2, strict=True, shard=3))
    built = build(tiny_encoder, dataset, out, BuildOptions(2, shard=3))
    assert (built.resumed, built.encoded) == (6, 3)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_shard_that_cannot_be_written_ends_the_build(
    tmp_path, boards, tiny_encoder, monkeypatch, failing
):
    """With that error; nothing is journalled that is not on disk, and the shards before it stay."""
    dataset, out, written = read_dataset(boards), tmp_path / "b", []

    def write(path, data, **how):
        if len(written) == failing:
            raise OSError(28, "No space left on device", str(path))
        written.append(path.name)
        atomic_write_bytes(path, data, **how)

    threads, running = torch.get_num_threads(), set(threading.enumerate())
    with monkeypatch.context() as full:
        full.setattr("mrad_indexer.build.build.atomic_write_bytes", write)
        with pytest.raises(OSError, match="No space left") as kept:
            build(tiny_encoder, dataset, out, OPTIONS)
    # Kept, the error keeps every frame: what waits for Python's collector there may wait for ever.
    assert kept.tb
    assert set(threading.enumerate()) <= running
    assert torch.get_num_threads() == threads
    assert written == [f"{number:06}.safetensors" for number in range(failing)]
    rows = (work_folder(out) / "journal.jsonl").read_text().splitlines()[1:]
    assert [json.loads(row)["name"] for row in rows] == [str(number) for number in range(failing)]
    assert build(tiny_encoder, dataset, out, OPTIONS).resumed == 6 * failing
    build(tiny_encoder, dataset, tmp_path / "whole", OPTIONS)
    assert same_keys(out, tmp_path / "whole")


def test_other_settings_or_images_are_not_mixed_in(tmp_path, boards, tiny_clip, tiny_encoder):
    dataset = read_dataset(boards)
    out = tmp_path / "b"
    with pytest.raises(ImageError):
        build(tiny_encoder, dataset, out, BuildOptions(3, strict=True, shard=6))
    with pytest.raises(JournalError, match=r"batch_size 3 → 4.*--restart"):
        build(tiny_encoder, dataset, out, BuildOptions(4, shard=6))
    part = dataset.select(split="")
    fewer = type(part)(part.name, part.root, part.records[:-1])
    with pytest.raises(JournalError, match="images 17 → 16"):
        build(tiny_encoder, fewer, out, OPTIONS)
    other = Encoder.from_clip(tiny_clip, image_size=64, name="tiny", device="cpu")
    with pytest.raises(JournalError, match="tiny at 96 px"):
        build(other, dataset, out, OPTIONS)
    assert build(other, dataset, out, OPTIONS, restart=True).resumed == 0


def test_restart_waits_for_the_lock_before_it_removes_anything(tiny_encoder, boards, tmp_path):
    """Another build's shards stay, whether this one begins again or finds the bank there."""
    out = tmp_path / "bank"
    work = work_folder(out)
    dataset = read_dataset(boards)
    with Journal(work / "journal.jsonl", {"another": "build"}):
        shard = work / "000000.safetensors"
        shard.write_bytes(b"another build's")
        with pytest.raises(JournalError, match="in use"):
            build(tiny_encoder, dataset, out, OPTIONS, restart=True)
        assert shard.read_bytes() == b"another build's"
    build(tiny_encoder, dataset, out, OPTIONS, restart=True)
    with Journal(work / "journal.jsonl", {"another": "build"}):
        shard.write_bytes(b"another build's")
        assert build(tiny_encoder, dataset, out, OPTIONS).already
        assert shard.exists()
    assert build(tiny_encoder, dataset, out, OPTIONS).already
    assert not work.exists()


def test_a_standing_bank_is_kept(tmp_path, boards, tiny_encoder):
    dataset, out = read_dataset(boards), tmp_path / "b"
    first = build(tiny_encoder, dataset, out, OPTIONS)
    again = build(tiny_encoder, dataset, out, OPTIONS)
    assert again.already
    assert again.bank.digest == first.bank.digest
    with pytest.raises(BankError, match="another bank"):
        build(tiny_encoder, dataset, out, BuildOptions(4))
    build(tiny_encoder, dataset, out, BuildOptions(4), replace=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.txt").write_text("mine")
    with pytest.raises(BankError, match="no bank"):
        build(tiny_encoder, dataset, tmp_path / "photos", OPTIONS, replace=True)
    assert (tmp_path / "photos/a.txt").read_text() == "mine"


def test_a_damaged_shard_is_encoded_again(tmp_path, boards, tiny_encoder):
    dataset, out = read_dataset(boards), tmp_path / "b"
    build(tiny_encoder, dataset, tmp_path / "whole", OPTIONS)
    with pytest.raises(ImageError):
        build(tiny_encoder, dataset, out, BuildOptions(3, strict=True, shard=6))
    shard = next(work_folder(out).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    build(tiny_encoder, dataset, out, OPTIONS)
    assert same_keys(out, tmp_path / "whole")


def test_images_that_cannot_be_read_for_a_time_cost_no_shard_that_is_whole(
    tmp_path, make_image, tiny_encoder, monkeypatch
):
    """As where a network share goes away while a build runs, and comes back."""
    data, out, away = tmp_path / "data", tmp_path / "bank", set(map(str, range(2, 8)))
    (data / "good").mkdir(parents=True)
    for seed in range(8):
        make_image(seed, (64, 64))[0].save(data / "good" / f"{seed}.png")
    options, dataset = BuildOptions(batch_size=2, shard=2), read_dataset(data)
    build(tiny_encoder, dataset, tmp_path / "whole", options)

    def decode(record, **given):
        if record.image.stem in away:
            return Skipped(record.source, "the share is away", ImageError.code)
        return decode_record(record, **given)

    monkeypatch.setattr("mrad_indexer.build.encode.decode_record", decode)
    with pytest.raises(DataError, match=r"6 of 8 images .* is kept \(2 images\): run the same"):
        build(tiny_encoder, dataset, out, options)
    assert not out.exists()
    assert [path.name for path in work_folder(out).glob("*.safetensors")] == ["000000.safetensors"]
    away.clear()
    built = build(tiny_encoder, dataset, out, options)
    assert (built.encoded, built.resumed, built.skipped) == (6, 2, ())
    assert same_keys(out, tmp_path / "whole")


def test_nothing_usable_is_an_error(tmp_path, tiny_encoder):
    (tmp_path / "data/good").mkdir(parents=True)
    (tmp_path / "data/good/a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="no image that can be used"):
        build(tiny_encoder, read_dataset(tmp_path / "data"), tmp_path / "b")


def test_killed_at_60_percent_and_resumed(tmp_path, make_folder, tiny_options, spawn, mrad):
    """The real command, SIGKILL, the real command again: the same keys, byte for byte."""
    data = make_folder(tmp_path / "data", 200)
    command = ["build", data, *tiny_options, "--batch-size", "8", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    journal = work_folder(killed) / "journal.jsonl"

    running = spawn(*command, killed, slow=0.05)
    deadline = time.monotonic() + 600
    while not (journal.is_file() and journal.read_text().count('"stamp"') >= 2):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not killed.exists()

    done = spawn(*command, killed)
    stdout, stderr = done.communicate(timeout=900)
    assert done.returncode == 0, stderr
    assert "encoded before: " in stdout
    assert mrad(*command, whole).exit_code == 0
    assert same_keys(whole, killed)
    assert not work_folder(killed).exists()
    one, two = MemoryBank.load(whole), MemoryBank.load(killed)
    assert [e.source for e in one.entries] == [e.source for e in two.entries]
    assert len({e.entry_id for e in two.entries}) == 200
    assert one.patch.region.tolist() == two.patch.region.tolist()
    assert faiss.read_index(str(whole / "image.faiss")).ntotal == 200


def test_two_builds_of_one_bank_do_not_meet(tmp_path, boards, tiny_encoder):
    dataset, out = read_dataset(boards), tmp_path / "b"
    asked = Plan.of(tiny_encoder, dataset, OPTIONS).asked
    with (
        Journal(work_folder(out) / "journal.jsonl", asked),
        pytest.raises(JournalError, match="in use by another process"),
    ):
        build(tiny_encoder, dataset, out, OPTIONS)


def test_the_command_says_what_it_did(tmp_path, mrad, boards, tiny_options):
    done = mrad("build", boards, "--out", tmp_path / "b", *tiny_options)
    assert done.exit_code == 0, done.output
    assert "8 good and 8 defective images" in done.stdout
    assert "good/broken.png" in done.stdout
    assert "without a mask: 1 defective image," in done.stdout
    metadata = json.loads((tmp_path / "b/bank.json").read_text())["metadata"]
    assert metadata["pretrained"].endswith("tiny.safetensors")
    assert [row["source"] for row in metadata["build"]["skipped"]] == ["good/broken.png"]
    again = mrad("build", boards, "--out", tmp_path / "b", *tiny_options)
    assert "stands already" in " ".join(again.stdout.split())
    good = mrad("build", boards / "..", "--out", tmp_path / "g", *tiny_options, "--only", "x")
    assert good.exit_code == 2


def test_defects_too_small_to_give_a_key_are_told_once_by_name(
    tmp_path, mrad, make_image, tiny_options
):
    """Of three masks one covers a patch, one is a pixel, one is a hair across the whole image."""
    data = tmp_path / "data"
    for name in ("good", "defect", "masks"):
        (data / name).mkdir(parents=True)
    make_image(0)[0].save(data / "good/0.png")
    for name in ("whole", "pixel", "hair"):
        image, mask = make_image(1, defect=True)
        marked = np.array(mask)
        if name != "whole":
            marked[:] = 0
            marked[20, 30 if name == "pixel" else slice(None)] = 255
        image.save(data / f"defect/{name}.png")
        Image.fromarray(marked).save(data / f"masks/{name}.png")
    done = mrad("build", data, "--out", tmp_path / "b", *tiny_options, "--coreset", "4")
    assert done.exit_code == 0, done.output
    told = " ".join(done.stderr.split())
    assert told.count("fills no patch") == 1
    assert "2 defects with a mask" in told
    assert "defect/hair.png defect/pixel.png" in told
    assert "defect/whole.png" not in told
    again = mrad("build", data, "--out", tmp_path / "b", *tiny_options, "--coreset", "4")
    assert "defect/hair.png" in again.stderr
    facts = json.loads(mrad("bank", "inspect", tmp_path / "b", "--json").stdout)
    assert facts["build"]["too_small"] == ["defect/hair.png", "defect/pixel.png"]


@pytest.mark.parametrize(
    ("size", "small"), [((640, 480), (160, 120)), ((100, 30), (100, 30)), ((4000, 3), (160, 1))]
)
def test_a_thumbnail_keeps_the_shape_and_never_grows(size, small) -> None:
    thumbnail = Image.open(io.BytesIO(thumbnail_of(Image.new("RGB", size, (200, 30, 90)))))
    assert thumbnail.size == small
    assert np.abs(np.asarray(thumbnail).astype(int) - (200, 30, 90)).max() < 6
