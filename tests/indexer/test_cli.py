"""The `mrad` command itself: help without torch, plugs, errors, inspect, weights, heads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint, version

import pytest
import typer
from mrad_indexer.cli import main
from mrad_indexer.cli.main import GROUP
from mrad_indexer.cli.watch import show
from safetensors.torch import save_file
from typer.testing import CliRunner

from mrad import MemoryBank
from mrad.errors import BankNotFoundError, MissingPackageError, MRADError
from mrad.lock import WriterLock
from mrad.memory.living import LivingFolder, writing
from mrad.memory.operations import Put
from mrad.retrieval.choose import make_retriever

COMMANDS = (
    "demo", "build", "calibrate", "score", "watch", "bank", "data", "eval", "train", "import",
    "weights", "heads", "memory",
)  # fmt: skip


def output_without_torch(*arguments: str, but: tuple[str, ...] = ()) -> str:
    """What `mrad` prints, in a process that must not have loaded what starts slowly."""
    program = (
        "import sys; from typer.testing import CliRunner; from mrad_indexer.cli.main import app; "
        f"done = CliRunner().invoke(app, {list(arguments)}); print(done.output); "
        f"print('heavy:', [m for m in {[m for m in ('torch', 'faiss', 'open_clip') if m not in but]} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "heavy: []" in done.stdout, done.stderr
    return done.stdout


def test_help_lists_every_command_and_imports_no_torch():
    shown = output_without_torch("--help")
    for name in COMMANDS:
        assert f" {name} " in shown


def test_a_memory_is_inspected_without_torch_or_its_distances(board_bank, tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(board_bank, bank)
    (bank / "derived").mkdir(exist_ok=True)
    (bank / "derived" / "left-out-0.safetensors").write_bytes(b"x")
    assert "16 images" in output_without_torch("bank", "inspect", str(bank), but=("faiss",))


def test_a_dataset_is_checked_without_torch(boards):
    assert "unreadable images: 1" in output_without_torch("data", "check", str(boards))


def test_version(mrad):
    assert mrad("--version").stdout == f"mrad {version('mrad')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(mrad, name):
    done = mrad(name, "--help")
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_a_missing_package_is_named_with_what_to_install(mrad, tmp_path, boards, monkeypatch):
    monkeypatch.setitem(sys.modules, "mrad_indexer.build.ray", None)
    done = mrad("build", boards, "--out", tmp_path / "b", "--engine", "ray")
    assert done.exit_code == 2
    assert "(missing_package)" in done.stderr
    error = ModuleNotFoundError("No module named 'ray'", name="ray.data")
    assert "pip install 'mrad[ray]'" in str(MissingPackageError.of(error, "it cannot run"))


def test_defaults_in_brackets_are_shown(mrad):
    assert "[calibrated]" in mrad("score", "--help").stdout
    assert "[shipped ones" in mrad("build", "--help").stdout


def test_an_error_is_one_line_and_status_2(mrad, tmp_path):
    done = mrad("bank", "inspect", tmp_path / "none")
    assert done.exit_code == 2
    assert "no bank at" in done.stderr
    assert BankNotFoundError.code in done.stderr
    assert "Traceback" not in done.output
    assert len(done.stderr.strip().splitlines()) == 1


def one() -> None:
    """One command."""
    typer.echo("one")


def failing() -> None:
    """Fails."""
    raise MRADError("[not markup]")


group, single = typer.Typer(), typer.Typer()
group.command("a")(one)
group.command("b")(failing)
single.command()(one)


@pytest.fixture
def plug(monkeypatch):
    """`plug(target)`: the `mrad` command with one more, `it`."""

    def plugged(target: str) -> typer.Typer:
        points = main.plugged() | {"it": EntryPoint("it", target, GROUP)}
        monkeypatch.setattr(main, "plugged", lambda: points)
        return main.app

    return plugged


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module, under a name that an entry point can give."""
    monkeypatch.setitem(sys.modules, "plugged_by_test", sys.modules[__name__])


@pytest.mark.parametrize(
    ("target", "arguments"), [("one", ["it"]), ("single", ["it"]), ("group", ["it", "a"])]
)
def test_a_function_a_single_command_and_a_group_are_plugged(target, arguments, plug):
    done = CliRunner().invoke(plug(f"plugged_by_test:{target}"), arguments)
    assert (done.exit_code, done.stdout) == (0, "one\n")


def test_errors_of_plugged_commands_are_caught_and_shown_as_they_are(plug):
    done = CliRunner().invoke(plug("plugged_by_test:group"), ["it", "b"])
    assert done.exit_code == 2
    assert "[not markup]" in done.stderr


def test_a_command_whose_packages_are_missing_says_so(plug):
    app = plug("mrad_service.no_such_module:app")
    assert "it" in CliRunner().invoke(app, ["--help"]).stdout
    done = CliRunner().invoke(app, ["it"])
    assert done.exit_code == 2
    assert "pip install 'mrad[service]'" in done.stderr


def test_inspect(mrad, board_bank):
    facts = json.loads(mrad("bank", "inspect", board_bank, "--json").stdout)
    assert facts["verified"]
    assert facts["usable"]
    assert facts["labels"] == {"normal": 8, "anomalous": 8}
    assert facts["levels"]["patch"]["anomalous"] == 7
    assert facts["defects"] == {"blob": 8}
    assert facts["objects"] == {"boards": {"normal": 8, "anomalous": 8}}
    assert 0 < facts["calibration"]["combined"]["image_threshold"] < 1
    assert [row["source"] for row in facts["skipped"]] == ["good/broken.png"]
    shown = mrad("bank", "inspect", board_bank).stdout
    for text in (
        "every digest holds",
        "single patches, for nn",
        "tiny at 96 px",
        "calibration of combined",
        "good/broken.png",
    ):
        assert text in shown


def test_inspect_shows_indexes_and_their_error(mrad, board_bank, tmp_path):
    bank = MemoryBank.load(shutil.copytree(board_bank, tmp_path / "bank"))
    assert "index of" not in mrad("bank", "inspect", tmp_path / "bank").stdout
    make_retriever(bank.patch, mode="approximate")
    (index,) = json.loads(mrad("bank", "inspect", tmp_path / "bank", "--json").stdout)["indexes"]
    assert (index["of"], index["keys"], index["storage"]) == ("patch", len(bank.patch), "fp16")
    assert 0 <= index["accuracy"]["largest_error"] < 1e-3
    shown = mrad("bank", "inspect", tmp_path / "bank").stdout
    assert "index of" in shown
    assert f"{index['accuracy']['largest_error']:.1e}" in shown
    assert "adds to the patch level: one key a region" in shown


def test_a_damaged_bank_is_not_inspected(mrad, board_bank, tmp_path):
    copy = tmp_path / "bank"
    shutil.copytree(board_bank, copy)
    data = bytearray((copy / "patch.faiss").read_bytes())
    data[-1] ^= 1
    (copy / "patch.faiss").write_bytes(data)
    done = mrad("bank", "inspect", copy)
    assert done.exit_code == 2
    assert "fails its SHA-256" in done.stderr


def test_calibrate_finds_the_banks_own_images(mrad, board_bank, tmp_path):
    import shutil

    copy = tmp_path / "bank"
    shutil.copytree(board_bank, copy)
    done = mrad("calibrate", copy, "--draws", 5, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "8 good and 8 defective" in done.stdout
    assert "skipped good/broken.png" in done.stdout


def test_calibrate_judges_what_a_memory_holds_where_its_images_are_gone(
    mrad, boards, tiny_options, tmp_path
):
    """As on another machine, or after `bank merge` of memories of which nobody knows the images."""
    images, bank = tmp_path / "images", tmp_path / "bank"
    shutil.copytree(boards, images)
    assert mrad("build", images, "--out", bank, *tiny_options).exit_code == 0
    there = mrad("calibrate", bank, "--draws", 5, "--dry-run")
    shutil.rmtree(images)
    done = mrad("calibrate", bank, "--draws", 5)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "until then its images are judged by what it holds of them" in said
    assert "8 good and 8 defective" in said
    assert (
        re.search(r"image +\d\.\d{3}", done.output)[0]
        == re.search(r"image +\d\.\d{3}", there.output)[0]
    )
    assert mrad("calibrate", bank, "--only", "boards").exit_code == 2


def test_calibrate_says_at_once_that_a_server_has_the_memory(mrad, board_bank, tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(board_bank, bank)
    with writing(bank) as (database, _):
        database.commit([Put("some/value", b"1")])
    lock = WriterLock(LivingFolder(bank).lock)
    done = mrad("calibrate", bank)
    lock.release()
    assert done.exit_code == 2
    assert "has a writer already" in done.output
    assert "replaces" not in done.output


def test_weights(mrad, tmp_path, monkeypatch, tiny_clip):
    monkeypatch.setenv("MRAD_WEIGHTS", str(tmp_path))
    (tmp_path / "ViT-tiny").mkdir()
    path = tmp_path / "ViT-tiny/mine.safetensors"
    save_file(tiny_clip.state_dict(), path)
    rows = json.loads(mrad("weights", "list", "--json").stdout)
    assert {"ViT-tiny", "mrad-mini"} <= {row["name"] for row in rows}
    assert str(path) in {row["path"] for row in rows}
    assert "mine" in mrad("weights", "list").stdout
    done = mrad("weights", "verify", path)
    assert done.exit_code == 0
    assert f"parameters   {sum(p.numel() for p in tiny_clip.parameters())}" in done.stdout
    path.write_bytes(path.read_bytes()[:1000])
    assert mrad("weights", "verify", path).exit_code == 2
    missing = mrad("weights", "verify", "ViT-B-32", "openai")
    assert missing.exit_code == 2
    assert "mrad weights fetch ViT-B-32 openai" in missing.stderr


def test_heads(mrad):
    shown = mrad("heads", "list").stdout
    for name in ("tf", "ft", "clip"):
        assert f" {name} " in shown


def test_brackets_and_bytes_in_names_are_printed_and_never_end_a_command(
    tmp_path, mrad, make_image, tiny_options
):
    """Of the dataset's folder, an image, a defect, the bank: none is markup, none has to be UTF-8."""
    data = tmp_path / "parts[/red]"
    for seed in range(4):
        image, mask = make_image(seed, (80, 64), defect=seed % 2 == 1)
        kind = os.fsdecode(b"[x]\xff")
        name = os.fsdecode(b"\xfe[bold]\n%d.png" % seed)
        folder = data / ("good" if mask is None else f"defect/{kind}")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(folder / name)
        if mask is not None:
            (data / "masks" / kind).mkdir(parents=True, exist_ok=True)
            mask.save(tmp_path / "a.png")
            (tmp_path / "a.png").rename(data / "masks" / kind / name)
    (data / "good" / "[red]torn.png").write_bytes(b"no image")
    bank = tmp_path / "bank[/y]"
    checked = mrad("data", "check", data)
    assert checked.exit_code == 0, checked.output
    assert f"images in {data}" in checked.stdout
    assert "[red]torn.png" in checked.stdout
    built = mrad("build", data, "--out", bank, *tiny_options)
    assert built.exit_code == 0, built.output
    assert f"{bank}: 2 good and 2 defective" in built.stdout
    (data / "good" / "[red]torn.png").unlink()  # an evaluation wants every image
    for command in (
        ("bank", "inspect", bank),
        ("bank", "inspect", bank, "--json"),
        ("calibrate", bank, data, "--draws", 10),
        ("eval", data, "--bank", bank, "--out", tmp_path / "report[/z]"),
        ("watch", tmp_path / "none[/x]", "--bank", bank, "--out", tmp_path / "w"),
    ):
        done = mrad(*command)
        assert done.exit_code == (2 if command[0] == "watch" else 0), done.output
        assert "[/" in done.output


def test_the_watch_prints_any_name(mrad, capsys):
    row = {"name": "[/x]\n\udcff.png", "status": "ok", "score": 0.5, "verdict": "anomalous"}
    show(row)
    show(row | {"status": "error", "error": "[red] is no image"})
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(r"[/x]\n\xff.png")
    assert said[1].endswith(r"[/x]\n\xff.png: [red] is no image")


def test_the_first_lines_of_help_are_the_commands_own():
    group = typer.main.get_command(main.app)
    for name, line in main.COMMANDS.items():
        assert group.get_command(None, name).get_short_help_str(200) == line, name
    assert list(main.COMMANDS) == group.list_commands(None)[: len(main.COMMANDS)]


def test_a_full_disk_and_a_place_that_may_not_be_written_are_one_line(
    boards, tmp_path, mrad, tiny_options, monkeypatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "shard")

    with monkeypatch.context() as patched:
        patched.setattr("mrad_indexer.build.build.atomic_write_bytes", full)
        result = mrad("build", boards, "--out", tmp_path / "bank", *tiny_options)
    said = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "error shard: No space left on device; free room" in said
    assert "Traceback" not in said
    file = tmp_path / "file"
    file.write_text("")
    result = mrad("build", boards, "--out", file / "bank", *tiny_options)
    assert result.exit_code == 2
    assert "error " in result.output
    assert "Traceback" not in result.output


def test_a_low_limit_of_addresses_is_told(monkeypatch):
    """PyTorch ends such a process by std::bad_alloc."""
    import resource

    from mrad_indexer.cli.main import short_of_addresses

    for limit, told in ((3 << 30, True), (16 << 30, False), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert bool(short_of_addresses()) == told
        assert not told or "3.0 GiB of addresses (ulimit -v)" in short_of_addresses()
