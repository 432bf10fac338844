"""Runs pages: `python run_page.py`, then a job a line on stdin, its exit status a line on stdout.

Each page runs in a fork of this process, which has done nothing but import, so that torch is imported
once for all pages. A job is JSON: `page`, `url`, `desk` (the folder to run in), `log`, `environment`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from pages import ELSEWHERE, Step, call, shell_lines, steps, words

DEFAULT_URL = "http://127.0.0.1:8000"
LIMIT = 900
"""Seconds for a page, on a loaded machine."""


def run_python(step: Step, text: str, namespace: dict[str, Any], page: Path) -> None:
    # Padded, so that a traceback names the line of the page.
    exec(compile("\n" * step.line + text, str(page), "exec"), namespace)


def run_shell(text: str) -> None:
    for line in shell_lines(text):
        parts = call(words(line))
        program = parts[0] if parts else line.split()[0]
        if program in ELSEWHERE:
            continue
        if program == "mrad":
            run_mrad(parts[1:])
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)


def run_mrad(arguments: list[str]) -> None:
    from mrad_indexer.cli.main import app

    try:
        app(arguments, standalone_mode=True)
    except SystemExit as end:
        if end.code not in (0, None):
            raise RuntimeError(f"mrad {' '.join(arguments)} ended with {end.code}") from end


def run_page(page: Path, url: str) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for step in steps(page):
        if step.why_not or step.kind not in ("python", "sh"):
            continue
        print(f"--- {page.name}:{step.line} ({step.kind})", flush=True)
        text = step.text.replace(DEFAULT_URL, url)
        if step.kind == "python":
            run_python(step, text, namespace, page)
        else:
            run_shell(text)


def child(job: dict[str, Any]) -> None:
    """The fork: a shell of its own, as far as a page can tell."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a page must not read the next job
    os.chdir(job["desk"])
    os.environ.clear()
    os.environ.update(job["environment"])
    signal.alarm(LIMIT)
    status = 0
    try:
        run_page(Path(job["page"]), job["url"])
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    import mrad_indexer.cli.main  # noqa: F401
    import open_clip  # noqa: F401
    import torch  # noqa: F401

    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            child(json.loads(line))
        _, status = os.waitpid(number, 0)
        print(status, flush=True)


if __name__ == "__main__":
    main()
