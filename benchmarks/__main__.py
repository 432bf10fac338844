"""Every measured figure: tables on the screen, and as Markdown and JSON in benchmarks/results/.

    python -m benchmarks                       all of them, one after the other
    python -m benchmarks retrieval encoder     these
    python -m benchmarks --quick               tiny sizes: checks the scripts, figures mean nothing
    python -m benchmarks --list                what there is

A benchmark is a module of this package with `run(quick)` (benchmarks/tables.py). One that
fails is reported and the others go on; the exit status is 1 then. Figures belong on a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.tables import Table, hardware

OUT = Path(__file__).parent / "results"


def available(names: Sequence[str] = ()) -> dict[str, ModuleType | Exception]:
    """Benchmarks by name, in the order of their files; one that cannot be imported keeps its error.

    With `names` nothing else is imported: a benchmark's name is its file's.
    """
    found: dict[str, ModuleType | Exception] = {}
    package = importlib.import_module("benchmarks")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_") or (names and info.name not in names):
            continue
        try:
            module = importlib.import_module(f"benchmarks.{info.name}")
        except ImportError as error:  # an extra that is not installed
            found[info.name] = error
            continue
        if hasattr(module, "run"):
            found[info.name] = module
    return found


def write(name: str, tables: Sequence[Table], out: Path, quick: bool) -> None:
    """`<out>/<name>.md` and `.json`; quick results go elsewhere than real ones."""
    folder = out / "quick" if quick else out
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"hardware": hardware(), "quick": quick, "tables": [t.as_json() for t in tables]}
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(table.markdown() for table in tables)
    head = f"# {name}\n\n`python -m benchmarks {name}`\n\nTaken on: {hardware()}.\n\n"
    (folder / f"{name}.md").write_text(head + text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the number of benchmarks that failed, 1 at most."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="which; all when left out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks the scripts only")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the files ({OUT})")
    parser.add_argument("--data", type=Path, help="folder of sets, for those that read some")
    options = parser.parse_args(arguments)
    known = available(options.names)
    if options.list:
        for name, module in known.items():
            line = (
                module if isinstance(module, Exception) else (module.__doc__ or "").splitlines()[0]
            )
            print(f"{name:14} {line}")
        return 0
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(available())}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    print(f"{hardware()}{' -- QUICK: figures mean nothing' if options.quick else ''}\n", flush=True)
    failed = [name for name in options.names or known if not _one(name, known[name], options)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _one(name: str, module: ModuleType | Exception, options: argparse.Namespace) -> bool:
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        if isinstance(module, Exception):
            raise module
        reads = "data" in inspect.signature(module.run).parameters
        given = {"data": options.data} if options.data and reads else {}
        tables = module.run(options.quick, **given)
    except (Exception, SystemExit):
        traceback.print_exc()
        return False
    for table in tables:
        print(table.markdown(), flush=True)
    write(name, tables, options.out, options.quick)
    return True


if __name__ == "__main__":
    sys.exit(main())
