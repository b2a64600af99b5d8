"""Faults, times tried, survived, and what they cost; on a private Slurm where they need one.

    python benchmarks/reliability.py [--work DIR] [--only F1 F4] [--seed N]

Writes `results/reliability.md` and `.json` beside this file; with `--only`, other rows are kept.
A fault is a function of `FAULTS` in one of the files `faults_*.py`.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reliability.json"


def faults():
    """All faults by name."""
    found = {}
    for path in sorted(HERE.glob("faults_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= module.FAULTS
    return found


def use_private_slurm():
    """Lead all commands to it; True if it was started here."""
    up = subprocess.run([HERE.parent / "slurm/dev/up"], capture_output=True, text=True)
    if up.returncode:
        raise SystemExit(up.stderr.strip())
    os.environ["SLURM_CONF"] = up.stdout.strip().split("=", 1)[1]
    return "already up" not in up.stderr


def table(rows):
    lines = [
        "# Faults and what they cost",
        "",
        "Made by `python benchmarks/reliability.py` on a private Slurm of 3 nodes on one machine",
        f"({platform.machine()}, {os.cpu_count()} cores). *Survived*: the run ended, and its store",
        "is bit for bit that of an undisturbed run. *Load*: processes that wanted the cores as it",
        "ended; other work ran beside it.",
        "",
        "| fault | tried | survived | figure | wall | load |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda one: int(one[0].split()[0][1:])):
        cells = [name, row["tried"], row["survived"], f"{row['figure']} {row['unit']}"]
        cells += [f"{row['seconds']} s", row["load"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "F18 (many blocks on 100 workers) is in `scaling.md`.",
    ]
    return "\n".join(lines) + "\n"


def publish(name, row):
    """Put a row among those there are."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows[name] = row
    RESULTS.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n")
    RESULTS.with_suffix(".md").write_text(table(rows))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="gfdt-faults-"))
    work.mkdir(parents=True, exist_ok=True)
    if not args.only:
        RESULTS.unlink(missing_ok=True)
    ours = use_private_slurm()
    try:
        for name, fault in faults().items():
            if args.only and name.split()[0] not in args.only:
                continue
            started = time.monotonic()
            row = fault(work, args.seed)
            row["seconds"] = round(time.monotonic() - started)
            row["load"] = round(os.getloadavg()[0])
            print(name, json.dumps(row), flush=True)
            publish(name, row)
    finally:
        if ours:
            subprocess.run([HERE.parent / "slurm/dev/down"], check=True)


if __name__ == "__main__":
    main()
