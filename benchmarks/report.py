"""Make docs/benchmarks.md from results.jsonl.

python benchmarks/report.py
"""

import json
from pathlib import Path

from common import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `python benchmarks/report.py` from `benchmarks/results.jsonl`; each row is one measurement, in the order taken.
Times of one row come from one run on one machine; compare ratios, not seconds. The scripts say what they do.
"""


def cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return f"{len(value)} values"
    return str(value)


def main():
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    lines = [HEAD]
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        mine = [{k: v for k, v in row.items() if k != "benchmark"} for row in rows if row["benchmark"] == name]
        columns = list(dict.fromkeys(k for row in mine for k in row))
        lines += [f"\n## {name}\n", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |" for row in mine]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
