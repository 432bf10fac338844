"""Runs one page in the current folder: `python run_page.py PAGE URL`. Exits at the first failure.

Commands of `mrad` run in this process, so that torch is imported once for a page and not for a line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from pages import ELSEWHERE, Step, shell_lines, steps, words

DEFAULT_URL = "http://127.0.0.1:8000"


def run_python(step: Step, text: str, namespace: dict[str, Any], page: Path) -> None:
    # Padded, so that a traceback names the line of the page.
    code = compile("\n" * step.line + text, str(page), "exec")
    exec(code, namespace)


def run_shell(text: str) -> None:
    for line in shell_lines(text):
        parts = words(line)
        program = parts[0] if parts else line.split()[0]
        if program in ELSEWHERE:
            continue
        if program == "mrad":
            run_mrad(parts[1:])
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)


def run_mrad(arguments: list[str]) -> None:
    from indexer.cli import app

    try:
        app(arguments, standalone_mode=True)
    except SystemExit as end:
        if end.code not in (0, None):
            raise RuntimeError(f"mrad {' '.join(arguments)} ended with {end.code}") from end


def main(page: Path, url: str) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for step in steps(page):
        if step.why_not or step.kind not in ("python", "sh"):
            continue
        print(f"--- {page.name}:{step.line} ({step.kind})", flush=True)
        text = re.sub(re.escape(DEFAULT_URL), url, step.text)
        if step.kind == "python":
            run_python(step, text, namespace, page)
        else:
            run_shell(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
