"""The engine of this work tree against that of another: the same work in turns, a process each.

Prints one JSON line per model and work: `ratio` is this tree's tokens per second over the other's,
the median over rounds in which the two take turns, each first as often; and a last line with the
ratios' geometric mean. `one`, `many` and `repeat` are `engine.py`'s works; of `repeat`, with lookup
drafts (`lookup`) and without (`plain`).

    git worktree add ../before COMMIT && make -C ../before setup
    python ops/bench/engine_pairs.py ../before [--rounds 11] [--models smollm2,random]
                                               [--work one,many,lookup,plain]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import geometric_mean, median

HERE = Path(__file__).resolve().parents[2]
# Runs in either tree, with its own package and its own `engine.py`; only what both have is used.
WORKER = """
import sys, tempfile, time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import engine as bench
from plinth.engine.request import Sampling

name, work = sys.argv[1:]
options = Namespace(device="cpu", dtype="fp32", reference=False, prompt=1024)
with tempfile.TemporaryDirectory() as scratch:
    engine, model = bench.open_pair(name, Path(scratch) / name, options)
    bench.check_gap(engine, model, options.dtype)
    drafted = work == "lookup"
    prompts, new = bench._prompts("repeat" if work in ("lookup", "plain") else work, name, model, 0)
    sampling = Sampling(temperature=0, max_tokens=new, speculation="lookup" if drafted else "")
    for _ in sys.stdin:
        began = time.perf_counter()
        tokens = bench._serve(engine, prompts, sampling)
        print(tokens / (time.perf_counter() - began), bench.instruction_set(), flush=True)
"""


def main() -> None:
    """Measure what was asked for, a line each, then the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the other work tree, set up")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--models", default="smollm2,random")
    parser.add_argument("--work", default="one,many,lookup,plain")
    options = parser.parse_args()
    ratios = []
    for name in options.models.split(","):
        for work in options.work.split(","):
            ratios.append(measure(name, work, options.other.resolve(), options.rounds))
    line = {"bench": "engine_pairs", "geometric_mean": round(geometric_mean(ratios), 3)}
    print(json.dumps(line))


def measure(name: str, work: str, other: Path, rounds: int) -> float:
    """One model and one kind of work: rounds in turns, then the medians."""
    trees = [HERE, other]
    sides = [_start(tree, name, work) for tree in trees]
    rates: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            process = sides[side]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            said = process.stdout.readline().split()
            if not said:
                sys.exit(f"the benchmark ended in {trees[side]}")
            if turn:  # the first turn warms up
                rates[side].append(float(said[0]))
    for process in sides:
        process.communicate()
    ratio = float(median(a / b for a, b in zip(*rates, strict=True)))
    line = {
        "bench": "engine_pairs", "model": name, "work": work, "ratio": round(ratio, 3),
        "tokens_per_second": round(median(rates[0]), 1), "other": round(median(rates[1]), 1),
        "rounds": rounds, "cpu": said[1],
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    return ratio


def _start(tree: Path, name: str, work: str) -> subprocess.Popen[str]:
    folders = [tree / "services", tree / "ops" / "bench"]
    return subprocess.Popen(
        [tree / ".venv" / "bin" / "python", "-c", WORKER, name, work],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    main()
