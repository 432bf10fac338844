"""What the pages tell people to type: it runs, its options exist, its links and names resolve."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `pages`, under any import mode
import pages

ROOT = pages.ROOT
RUNNABLE = [
    page
    for page in pages.PAGES
    if any(step.kind in ("python", "sh") and not step.why_not for step in pages.steps(page))
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_every_block_runs_in_the_order_of_the_page(
    page: Path, desk: Path, environment: dict[str, str], url: str, runner: subprocess.Popen[str]
) -> None:
    log = desk / "log"
    job = {"page": page, "url": url, "desk": desk, "log": log, "environment": environment}
    assert runner.stdin is not None
    assert runner.stdout is not None
    runner.stdin.write(json.dumps(job, default=str) + "\n")
    runner.stdin.flush()
    assert runner.stdout.readline() == "0\n", log.read_text()[-6000:]


def test_steps_are_found_hidden_left_out_and_indented(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- setup\na = 1\n-->\n```python\nb = a\n```\n<!-- not run: slow -->\n```sh\nsleep 9\n```\n"
        '!!! note\n    ```sh\n    echo "x" \\\n      y\n    ```\n```text\nno\n```\n'
    )
    found = [(step.kind, step.text, step.why_not) for step in pages.steps(page)]
    assert found == [
        ("python", "a = 1\n", ""),
        ("python", "b = a\n", ""),
        ("sh", "sleep 9\n", "slow"),
        ("sh", 'echo "x" \\\n  y\n', ""),
        ("text", "no\n", ""),
    ]
    assert pages.call(pages.words('A="x y" docker run b  # c')) == ["docker", "run", "b"]
    assert pages.shell_lines(found[3][1]) == ['echo "x"    y']


@pytest.mark.parametrize(
    ("page", "line", "command"), pages.commands("mrad"), ids=lambda value: str(value)[-60:]
)
def test_every_mrad_command_exists_with_its_options(
    page: Path, line: int, command: list[str]
) -> None:
    import click
    import typer.main
    from mrad_indexer.cli.main import app

    group: click.Command = typer.main.get_command(app)
    context, rest = click.Context(group, info_name="mrad"), command[1:]
    while isinstance(group, click.Group) and rest and not rest[0].startswith("-"):
        found = group.get_command(context, rest[0])
        assert found is not None, f"{page.name}:{line}: no command {' '.join(command)}"
        group, rest = found, rest[1:]
        context = click.Context(group, info_name=group.name, parent=context)
    group.make_parser(context).parse_args(list(rest))


def test_every_make_target_and_module_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, line, command in pages.commands("make"):
        assert set(command[1:]) <= targets, f"{page.name}:{line}"
    for page, line, command in pages.commands("python"):
        assert command[1] == "-m", f"{page.name}:{line}"
        file = ROOT / command[2].replace(".", "/")
        assert file.is_dir() or file.with_suffix(".py").exists(), f"{page.name}:{line}"


@pytest.mark.parametrize("page", pages.PAGES, ids=name_of)
def test_shell_blocks_parse(page: Path) -> None:
    for step in pages.steps(page):
        if step.kind in ("sh", "bash"):
            done = subprocess.run(["bash", "-n"], input=step.text, capture_output=True, text=True)
            assert done.returncode == 0, f"line {step.line}: {done.stderr}"


@pytest.mark.parametrize("page", pages.PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    ours = r"\b(?:docker|docs|tests|benchmarks|mrad|indexer|service|clients)/[\w./-]*\.(?:py|md|ya?ml|json|sh|png|svg)\b"
    named = set(re.findall(ours, text)) | set(
        re.findall(r"\b(?:docker|docs|tests)/\w[\w/]*/", text)
    )
    missing = {path for path in named if not (ROOT / path).exists()}
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    missing |= {link for link in links if not (page.parent / link).exists()}
    assert not missing


@pytest.mark.parametrize("page", pages.PAGES, ids=name_of)
def test_python_names_that_a_page_names_exist(page: Path) -> None:
    for name in set(
        re.findall(r"`((?:mrad|indexer|service|mrad_client)(?:\.\w+)+)`", page.read_text())
    ):
        parts = name.split(".")
        if parts[-1] in ("json", "yaml", "yml", "png", "heads", "commands") and len(parts) == 2:
            continue  # a file, or an entry-point group
        for length in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:length]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[length:]:
            value = getattr(value, part)


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    mkdocs = Path(sys.executable).with_name("mkdocs")
    if not mkdocs.exists():
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mrad build" in (tmp_path / "cli" / "index.html").read_text()
