"""The steps of `gpu.sh`: each in a process of its own, under a time limit, within one budget.

    ops/bench/gpu.sh [--device cuda|cpu] [--budget 450] [--out FOLDER] [--only STEP,…]

A step that fails stops no other. Its JSON lines are kept as they come, so that a step that is
killed at its limit still has those that it printed. The exit status is 1 if a step failed, was
killed or found no time left; a step that this machine can't do is skipped, with the reason.

Needs nothing but the standard library; the steps need torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from gpu_table import markdown

ROOT = Path(__file__).parents[2]
SKIPPED = 77  # the exit status by which a step says that it can't be done here (as automake's)
BUDGET_S = 450.0  # of all steps together: with what surrounds them, under 8 minutes
# Left at the end of the budget a step could do nothing but fail.
_LEAST_S = 5.0


@dataclass(frozen=True)
class Step:
    """A command after the interpreter, its time limit, and the steps that it can't do without."""

    name: str
    limit_s: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: "passed", "failed", "skipped" or "out of time"; and its last word."""

    status: str
    seconds: float
    note: str

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "out of time")


# Where they differ: a GPU runs the real shapes in bf16, a CPU in its place small ones by the same
# torch operations (not by its own kernels; training's are kept out by bf16).
_ENGINE = {"cuda": "--dtype bf16 --prompt 1024", "cpu": "--reference --prompt 256"}
_SMALL = {"cuda": "smollm2-shape", "cpu": "tiny-smollm2"}
_LARGE = {"cuda": "llama-8b-shape", "cpu": "tiny-llama"}
_TRAIN = {
    "cuda": "--device cuda:0 --model smollm2 --batch 16 --length 1024",
    "cpu": "--device cpu --model quickstart --batch 2 --length 64",
}
_UPDATES = {"cuda": 8, "cpu": 3}
# The project's own pytest settings name plugins that such a machine lacks.
_PYTEST = f"-m pytest -c {os.devnull} --rootdir . -p no:cacheprovider -q -rs"


def steps(device: str) -> list[Step]:
    """In order of what one would miss most. `device` is "cuda" or "cpu"."""
    bench = "ops/bench"
    engine = f"{bench}/engine.py --device {device} {_ENGINE[device]} --work one,batch,prefill"
    train = f"{bench}/train.py {_TRAIN[device]} --precision bf16 --steps 2 --rounds 3"
    ppo = f"{bench}/align.py --algos ppo --peers self --seeds 0 --updates {_UPDATES[device]}"
    # What is left out needs Ray and Redis.
    tests = f"{_PYTEST} tests/gpu --ignore tests/gpu/test_stack_gpu.py -o"
    return [
        Step("machine", 60, _words(f"{bench}/gpu_machine.py describe {device}")),
        Step("kernels", 120, _words(f"{bench}/gpu_machine.py kernels")),
        Step("engine-smollm2", 100, _words(f"{engine} --models {_SMALL[device]}"), ("machine",)),
        Step("engine-8b", 130, _words(f"{engine} --models {_LARGE[device]}"), ("machine",)),
        Step("train", 80, _words(train), ("machine",)),
        Step("ppo", 80, _words(f"{ppo} --device {device}"), ("machine", "kernels")),
        Step(
            "tests",
            120,
            (*_words(tests), "markers=gpu: needs an accelerator"),
            ("machine",),
            {"PLINTH_GPU_TESTS_DEVICE": device},
        ),
    ]


def _words(command: str) -> tuple[str, ...]:
    return tuple(command.split())


class Session:
    """Runs steps one after the other and writes what they say to `out`."""

    def __init__(
        self, out: Path, budget_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self.outcomes: dict[str, Outcome] = {}
        self._results, self._log = out / "results.jsonl", out / "log.txt"
        self._clock, self._end = clock, clock() + budget_s

    def run(self, step: Step) -> Outcome:
        """Carry out one step, if there is time and what it needs is there."""
        print(f"gpu.sh: {step.name}", flush=True)
        left = self._end - self._clock()
        missing = [name for name in step.needs if self.outcomes[name].status != "passed"]
        if missing:
            kind = "failed" if self.outcomes[missing[0]].failed else "skipped"
            outcome = Outcome(kind, 0.0, f"{missing[0]}: {self.outcomes[missing[0]].note}")
        elif left < _LEAST_S:
            outcome = Outcome("out of time", 0.0, "nothing was left of the budget")
        else:
            outcome = self._carry_out(step, min(step.limit_s, left))
        self.outcomes[step.name] = outcome
        record = {"status": outcome.status, "seconds": round(outcome.seconds, 1)}
        self._keep({"bench": "gpu", "step": step.name, **record, "note": outcome.note})
        return outcome

    def _carry_out(self, step: Step, limit_s: float) -> Outcome:
        began = self._clock()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **step.environment}
        with self._log.open("a+", encoding="utf-8", errors="replace") as log:
            log.write(f"\n== {step.name}: {' '.join(step.command)}\n")
            log.flush()
            start = log.tell()
            status = _run(step.command, environment, limit_s, log)
            log.seek(start)
            printed = log.read().splitlines()
        lines = [line for text in printed if (line := _json_object(text)) is not None]
        for line in lines:
            self._keep({**line, "step": step.name})
        seconds, word = self._clock() - began, last_word(printed)
        if status is None:
            return Outcome("out of time", seconds, f"killed after {limit_s:.0f} s; {word}")
        errors = [last_word(str(line["error"]).splitlines()) for line in lines if "error" in line]
        if errors or status not in (0, SKIPPED):
            return Outcome("failed", seconds, errors[-1] if errors else word)
        # A run of tests that were all skipped has shown nothing.
        idle = "pytest" in step.command and not re.search(r"\b\d+ passed", word)
        if status == SKIPPED or idle:
            return Outcome("skipped", seconds, word)
        return Outcome("passed", seconds, "" if lines else word)

    def _keep(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        with self._results.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def _run(
    command: Sequence[str], environment: dict[str, str], limit_s: float, log: TextIO
) -> int | None:
    """The exit status; None where the limit was reached: the whole process group is killed then."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def last_word(printed: Sequence[str]) -> str:
    """What a step said last that is no result: the last line of a traceback, pytest's summary."""
    words = [text.strip("= \n") for text in printed if _json_object(text) is None]
    failures = [text for text in words if text.startswith(("FAILED ", "ERROR "))]
    words = [text for text in words if text]
    if failures:
        return f"{words[-1]}; {failures[-1]}"[:400]
    return words[-1][:400] if words else ""


def main(arguments: Sequence[str] | None = None, planned: Sequence[Step] | None = None) -> int:
    """Run the steps, print the table; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of all steps")
    parser.add_argument("--out", type=Path, help="else $OUT, else .bench/gpu")
    parser.add_argument("--only", default="", help="names of steps; what they need is added")
    options = parser.parse_args(arguments)
    out: Path = options.out or Path(os.environ.get("OUT") or ROOT / ".bench" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "log.txt", "table.md"):
        (out / name).unlink(missing_ok=True)
    session = Session(out, options.budget)
    for step in chosen(planned or steps(options.device), options.only, parser):
        session.run(step)
    table = markdown(session.lines)
    (out / "table.md").write_text(table, encoding="utf-8")
    print(f"\n{table}\ngpu.sh: results in {out}", flush=True)
    return int(any(outcome.failed for outcome in session.outcomes.values()))


def chosen(planned: Sequence[Step], only: str, parser: argparse.ArgumentParser) -> Sequence[Step]:
    """The steps named in `only` with what they need, in order; all of them where it is empty."""
    if not only:
        return planned
    names = set(only.split(","))
    if unknown := names - {step.name for step in planned}:
        known = ", ".join(step.name for step in planned)
        parser.error(f"--only: no step {min(unknown)!r}; there are {known}")
    names |= {need for step in planned if step.name in names for need in step.needs}
    return [step for step in planned if step.name in names]


if __name__ == "__main__":
    sys.exit(main())
