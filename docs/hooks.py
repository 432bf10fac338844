"""mkdocs hook: the command line's reference, written from the commands themselves at each build."""

from __future__ import annotations

import re
from typing import Any

import typer.main
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

PROGRAMS = {"mrad": "mrad_indexer.cli.main", "mrad-client": "mrad_client.cli"}
MARKUP = re.compile(r"\[/?(?:bold|dim|italic)\]")


def reference(program: str, module: str) -> str:
    """Markdown of one program: a heading for each command, its arguments and options."""
    app: Any = __import__(module, fromlist=["app"]).app
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name=program)
    text = get_docs_for_click(obj=command, ctx=context, name=program)
    text = re.sub(r"^#", "##", MARKUP.sub("", text), flags=re.MULTILINE)
    completion = r"^\* `--(?:install|show)-completion`.*\n"
    return re.sub(completion, "", text, flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds `cli.md`."""
    body = "\n".join(reference(*pair) for pair in PROGRAMS.items())
    page = "# Command line\n\nThe same is said by `--help` behind any command.\n\n" + body
    files.append(File.generated(config, "cli.md", content=page))
    return files
