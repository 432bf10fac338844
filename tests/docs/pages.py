"""Pages as steps: what of a page is run, and how.

A fenced block of `python` or `sh` runs, in the page's order, all of a page's Python in one namespace.
`<!-- not run: why -->` on the line before a block leaves it out; `<!-- setup ... -->` holds Python that
runs but is not shown.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "clients/python/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
STEP = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->"
    r"|^(?:(?P<indent> *)<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r"(?P<pad> *)```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^(?P=pad)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
ELSEWHERE = {"make", "python", "docker", "kubectl", "pip", "uv", "git", "cd", "pre-commit"}
"""Programs whose lines are not run from a page; their own tests check what they name."""


@dataclass(frozen=True)
class Step:
    """One block. `kind` is `python`, `sh` or whatever the fence says."""

    kind: str
    text: str
    line: int
    why_not: str = ""


def steps(page: Path) -> list[Step]:
    """Every block of a page, in order, hidden set-ups included."""
    text = page.read_text()
    found = []
    for match in STEP.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["setup"] is not None:
            found.append(Step("python", match["setup"], line))
        else:
            pad = len(match["pad"])
            body = "".join(part[pad:] for part in match["text"].splitlines(keepends=True))
            found.append(Step(match["kind"], body, line, match["why"] or ""))
    return found


def shell_lines(text: str) -> list[str]:
    """Logical lines: continuations joined, comments and blanks dropped."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def words(line: str) -> list[str]:
    """The words of a simple command without its comment; [] when a shell must read it."""
    try:
        found = shlex.split(line, comments=True)
    except ValueError:
        return []
    return [] if any(part in {"|", "&", "&&", ">", ">>", "<", "<<"} for part in found) else found


def call(parts: list[str]) -> list[str]:
    """A simple command without the settings before it (`NAME=value program ...`)."""
    while parts and re.fullmatch(r"\w+=.*", parts[0], re.DOTALL):
        parts = parts[1:]
    return parts


def commands(program: str) -> list[tuple[Path, int, list[str]]]:
    """Every call of a program in any page's shell blocks: page, line, words."""
    found = []
    for page in PAGES:
        for step in steps(page):
            if step.kind in ("sh", "bash", "console"):
                for line in shell_lines(step.text):
                    parts = call(words(line))
                    if parts[:1] == [program]:
                        found.append((page, step.line, parts))
    return found
