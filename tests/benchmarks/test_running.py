"""The command that runs benchmarks, the guard that compares them, the plots beside them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import guard
from benchmarks.features import Repeated
from benchmarks.tables import Ratio, Table


def table(low: float, median: float, high: float) -> Table:
    return Table("Sizes", ["keys", "time"], [[10, "2.0 ms (1-3)"], [100, "1.5 s"]], ["A note."],
                 {"fast": Ratio(median, low, high, 3)})  # fmt: skip


def fake(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    module = ModuleType("benchmarks.fake")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setattr(command, "available", lambda names=(): {"fake": module})


def test_one_command_prints_markdown_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, lambda quick: [table(1, 2, 3)])
    assert command.main(["fake", "--out", str(tmp_path)]) == 0
    assert "| 100  | 1.5 s" in capsys.readouterr().out
    facts = json.loads((tmp_path / "fake.json").read_text())
    assert facts["tables"][0]["ratios"]["fast"]["median"] == 2
    assert "| 100  | 1.5 s" in (tmp_path / "fake.md").read_text()
    assert command.main(["fake", "--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "quick" / "fake.json").is_file()  # beside, never over, a real result


def test_one_that_fails_is_told_and_the_exit_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(quick: bool) -> list[Table]:
        raise RuntimeError("no images")

    fake(monkeypatch, run)
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "no images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["other"])


def test_every_benchmark_is_found() -> None:
    found = command.available(["retrieval", "growth", "tables"])
    assert list(found) == ["growth", "retrieval"]


def test_guard_compares_ratios_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, results = tmp_path / "ratios.json", tmp_path / "results"
    arguments = [str(results), "--reference", str(reference)]
    results.mkdir()
    assert guard.main(arguments) == 2  # nothing has run
    command.write("retrieval", [table(9, 10, 11)], results, quick=False)
    assert guard.main(arguments) == 2  # nothing to compare with
    assert guard.main([*arguments, "--accept"]) == 0
    command.write("retrieval", [table(6, 7, 8)], results, quick=False)
    assert guard.main(arguments) == 0  # noise: the best is within a fifth of the worst before
    command.write("retrieval", [table(5, 6, 7)], results, quick=False)
    capsys.readouterr()
    assert guard.main(arguments) == 1
    assert "FELL" in capsys.readouterr().out
    command.write("retrieval", [table(5, 6, 7)], results, quick=True)
    assert len(guard.read_results(results)) == 1


def test_repeated_keys_are_real_ones_first_then_noisy_ones() -> None:
    real = np.eye(5, 8, dtype=np.float32)
    keys = Repeated(real, 23)
    assert keys.shape == (23, 8)
    np.testing.assert_array_equal(keys[slice(0, 5)], real)
    np.testing.assert_array_equal(keys[np.array([7, 12])], keys[slice(0, 23)][[7, 12]])
    again = keys[slice(5, 10)]
    assert 0 < np.abs(again - real).max() < 0.2
    assert not np.array_equal(again, keys[slice(10, 15)])
    np.testing.assert_allclose(np.linalg.norm(keys[slice(0, 23)], axis=1), 1, rtol=1e-6)


@pytest.mark.nightly
def test_every_step_of_the_gpu_benchmark_walks_on_a_cpu() -> None:
    """Its figures mean nothing here; that it ends, and compares what it says, does."""
    from benchmarks import gpu

    tables = {found.title: found for found in gpu.run(True)}
    aims = tables["Aims"]
    assert [row[1] for row in aims.rows] == [20.0, 60.0, 95.0]
    assert all(isinstance(row[2], float) for row in aims.rows)
    left_out = [note for note in aims.notes if note.startswith(("compiled", "retrieval", "the "))]
    assert not [note for note in left_out if not note.startswith("compiled")]
    same = tables["CPU = cpu, float32"]
    assert [row[1] for row in same.rows] == [0.0] * 8
    assert len(tables["The encoder, cpu"].rows) == 10
    assert any(title.startswith("Head nn") for title in tables)


def test_without_a_gpu_the_gpu_benchmark_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    (only,) = gpu.run(False)
    assert only.rows == [["no GPU"]]


def test_what_carries_wheels_is_a_script_that_parses() -> None:
    script = Path(command.__file__).with_name("bare.sh")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    wrong = subprocess.run(
        ["bash", script, "send", "x"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "fetch or run" in wrong.stderr
