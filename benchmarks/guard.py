"""Regression guard: ratios of the last run against those that are committed; never seconds.

    python -m benchmarks retrieval service     run them first; results go to benchmarks/results/
    python -m benchmarks.guard                 compare; exit status 1 when a ratio fell
    python -m benchmarks.guard --accept        these ratios are the new reference

A ratio says how many times faster one way is than another on the same machine, both sides run in
turn, so it travels between machines where seconds do not. It fell when even its best run is below
the reference's worst by more than the slack. Outside the test suite: `make guard`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import OUT

REFERENCE = Path(__file__).with_name("ratios.json")
SLACK = 0.2
"""Share of a ratio that may be lost before it counts as fallen."""
Ratios = dict[str, dict[str, Any]]


def read_results(folder: Path) -> Ratios:
    """Every ratio of the results in a folder, under `benchmark: table: name`. Quick runs don't count."""
    found: Ratios = {}
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["quick"]:
            continue
        for table in facts["tables"]:
            for name, ratio in table["ratios"].items():
                key = f"{path.stem}: {table['title']}: {name}"
                found[key] = {**ratio, "hardware": facts["hardware"]}
    return found


def compare(now: Ratios, before: Ratios) -> tuple[list[str], int]:
    """A line for each ratio, and how many fell."""
    lines, worse = [], 0
    for key in sorted(now | before):
        if key not in now or key not in before:
            lines.append(f"{'not run' if key not in now else 'new':8} {key}")
            continue
        bad = bool(now[key]["high"] < before[key]["low"] * (1 - SLACK))
        worse += bad
        change = now[key]["median"] / before[key]["median"]
        lines.append(
            f"{'FELL' if bad else 'ok':8} {key}: {before[key]['median']:.2f}x -> "
            f"{now[key]['median']:.2f}x ({change:.0%})"
        )
    return lines, worse


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare or accept; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="?", type=Path, default=OUT, help=f"folder ({OUT})")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="the committed ratios")
    parser.add_argument("--accept", action="store_true", help="make these the reference")
    options = parser.parse_args(arguments)
    now = read_results(options.results)
    if not now:
        print(f"no ratio in {options.results}: run `python -m benchmarks` first", file=sys.stderr)
        return 2
    before: Ratios = {}
    if options.reference.is_file():
        before = json.loads(options.reference.read_text(encoding="utf-8"))
    if options.accept:
        text = json.dumps(before | now, indent=1, sort_keys=True) + "\n"
        options.reference.write_text(text, encoding="utf-8")
        print(f"{len(now)} ratios accepted in {options.reference}")
        return 0
    lines, worse = compare(now, before)
    print("\n".join(lines))
    if not before.keys() & now.keys():
        print(f"nothing to compare with in {options.reference}: --accept first", file=sys.stderr)
        return 2
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
