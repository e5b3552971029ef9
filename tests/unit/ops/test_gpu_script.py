"""`ops/bench/gpu.sh`: its steps are ones that can be run, and every end of a step is told."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
BENCH = ROOT / "ops" / "bench"
DEVICES = ("cuda", "cpu")
# https://huggingface.co: what SmolLM2-135M and Llama-3.1-8B have.
PARAMETERS = {"smollm2-shape": 134_515_008, "llama-8b-shape": 8_030_261_248}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("gpu")


def code(*lines: str) -> tuple[str, ...]:
    return "-c", "\n".join(lines)


def run(gpu: ModuleType, out: Path, *steps, budget: str = "60") -> tuple[int, list[dict], str]:
    """Exit status, JSON lines, table."""
    status = gpu.main(["--out", str(out), "--budget", budget], list(steps))
    lines = [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]
    return status, lines, (out / "table.md").read_text()


def ends(lines: list[dict]) -> dict[str, tuple[str, str]]:
    return {line["step"]: (line["status"], line["note"]) for line in lines if "status" in line}


@pytest.mark.parametrize("device", DEVICES)
def test_every_step_can_be_started(gpu: ModuleType, device: str) -> None:
    seen: set[str] = set()
    for step in gpu.steps(device):
        assert step.name not in seen
        assert seen.issuperset(step.needs), "a step needs only what ran before it"
        seen.add(step.name)
        assert 0 < step.limit_s < gpu.BUDGET_S < 480
        script = step.command[0]
        if script == "-m":
            continue
        known = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', (ROOT / script).read_text()))
        assert known.issuperset(word for word in step.command if word.startswith("--")), step.name


@pytest.mark.parametrize("device", DEVICES)
def test_the_engines_shapes_are_known(gpu: ModuleType, device: str) -> None:
    import torch

    from plinth.models.decoder import Decoder
    from plinth.models.hf import config as hf_config

    shapes = importlib.import_module("shapes")
    named = [
        step.command[step.command.index("--models") + 1]
        for step in gpu.steps(device)
        if "--models" in step.command
    ]
    assert len(named) == 2
    for name in named:
        with torch.device("meta"):
            decoder = Decoder(hf_config.from_hf(shapes.llama_config(name).to_diff_dict()))
        count = sum(parameter.numel() for parameter in decoder.parameters())
        assert count == PARAMETERS.get(name, count)
    assert device == "cpu" or set(named) == set(PARAMETERS)


def test_a_failing_step_is_told_and_stops_no_other(gpu, tmp_path) -> None:
    found = {"bench": "x", "n": 1}
    error = {"bench": "x", "error": "Traceback\nOSError: z"}
    status, lines, table = run(
        gpu,
        tmp_path,
        gpu.Step("first", 30, code(f"print({json.dumps(found)!r})", "raise ValueError('a|b')")),
        gpu.Step("second", 30, code("print('all is well')")),
        gpu.Step("third", 30, code("pass"), needs=("first",)),
        gpu.Step("fourth", 30, code(f"print({json.dumps(error)!r})")),
    )
    assert status == 1
    assert ends(lines) == {
        "first": ("failed", "ValueError: a|b"),
        "second": ("passed", "all is well"),
        "third": ("failed", "first: ValueError: a|b"),
        "fourth": ("failed", "OSError: z"),
    }
    assert {**found, "step": "first"} in lines, "what it found is kept"
    table = re.sub(r"\| \d+ s \|", "| … s |", table)
    assert "| first | failed | … s | ValueError: a\\|b |" in table
    assert "| second | passed | … s | all is well |" in table


def test_what_cannot_be_done_here_is_skipped_with_the_reason(gpu, tmp_path) -> None:
    reason = code("import sys", "print('no compiler', file=sys.stderr)", f"sys.exit({gpu.SKIPPED})")
    status, lines, _ = run(
        gpu,
        tmp_path,
        gpu.Step("kernels", 30, reason),
        gpu.Step("ppo", 30, code("pass"), needs=("kernels",)),
        gpu.Step("tests", 30, (*code("print('5 skipped in 0.1s')"), "pytest")),
        gpu.Step("more", 30, (*code("print('== 3 passed, 1 skipped in 2s ==')"), "pytest")),
    )
    assert status == 0
    assert ends(lines) == {
        "kernels": ("skipped", "no compiler"),
        "ppo": ("skipped", "kernels: no compiler"),
        "tests": ("skipped", "5 skipped in 0.1s"),
        "more": ("passed", "3 passed, 1 skipped in 2s"),
    }


def test_a_step_over_its_limit_is_killed_with_its_children(gpu, tmp_path) -> None:
    endless = code(
        "import os, signal, sys, time",
        "child = os.fork()",
        "if child:",
        "    print('{\"child\": %d}' % child, flush=True)",
        "signal.pause()",
    )
    status, lines, _ = run(gpu, tmp_path, gpu.Step("endless", 2.0, endless))
    assert status == 1
    assert ends(lines)["endless"] == ("out of time", "killed after 2 s; ")
    (child,) = [line["child"] for line in lines if "child" in line]
    patience = time.monotonic() + 20  # a killed process may still be there for a moment
    while alive(child) and time.monotonic() < patience:
        os.sched_yield()
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def test_no_step_outlasts_the_budget(gpu, tmp_path) -> None:
    now = [0.0]
    session = gpu.Session(tmp_path, 100.0, clock=lambda: now[0])
    assert session.run(gpu.Step("one", 30, code("pass"))).status == "passed"
    now[0] = 94.9
    limits = []
    session._carry_out = lambda step, limit: limits.append(limit) or gpu.Outcome("passed", 0, "")
    session.run(gpu.Step("two", 30, code("pass")))
    assert limits == [pytest.approx(5.1)]
    now[0] = 95.1
    late = session.run(gpu.Step("three", 30, code("pass")))
    assert (late.status, late.failed) == ("out of time", True)
    assert len(limits) == 1


def test_only_adds_what_a_step_needs(gpu) -> None:
    planned, parser = gpu.steps("cuda"), argparse.ArgumentParser()
    names = [step.name for step in gpu.chosen(planned, "ppo", parser)]
    assert names == ["machine", "kernels", "ppo"]
    with pytest.raises(SystemExit):
        gpu.chosen(planned, "ppo,pp", parser)


def test_the_table_sets_plinth_beside_its_rivals() -> None:
    rate = {"bench": "engine", "work": "one", "model": "m", "streams": 1, "dtype": "bf16"}
    lines = [
        {"machine": "NVIDIA H200", "device": "cuda", "driver": "580.1", "torch": "2.11.0+cu130"},
        {**rate, "who": "plinth", "tokens_per_second": 1500.0, "ratio": 1.0},
        {**rate, "who": "transformers", "tokens_per_second": 1000.0, "ratio": 1.51},
        {**rate, "work": "prefill", "who": "transformers", "tokens_per_second": 9.0, "ratio": 1.0},
        {"bench": "align", "algo": "ppo", "update_s": 0.25, "generation_tokens_s": 300.0,
         "loop_tokens_s": 200.0},
        {"step": "engine", "status": "passed", "seconds": 3.2, "note": ""},
    ]  # fmt: skip
    table = importlib.import_module("gpu_table").markdown(lines)
    assert "Device: NVIDIA H200 (`cuda`); driver 580.1, torch 2.11.0+cu130." in table
    rows = [line for line in table.splitlines() if "s/s |" in line or "0.250 s" in line]
    assert [row.replace(" tokens/s", "") for row in rows] == [
        "| decode, bf16, 1 stream | m | 1,500 | transformers | 1,000 | 1.51 |",
        "| PPO, sampling, fp32 | 10M | 300 | transformers, by hand | 200 | 1.50 |",
        "| PPO, one update, fp32 | 10M | 0.250 s | – | – | – |",
    ]


def script(out: Path, *arguments: str) -> tuple[int, str]:
    """The script itself, without the environment that tests have of pytest."""
    done = subprocess.run(
        ["bash", str(BENCH / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(out), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_script_ends_with_a_table_and_its_steps_status(tmp_path) -> None:
    status, printed = script(tmp_path, "--device", "cpu", "--only", "kernels")
    assert status == 0, printed
    assert re.search(r"^\| kernels \| passed \| ", printed, re.MULTILINE)
    assert (tmp_path / "table.md").read_text() in printed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_with_a_cpu_in_the_gpus_place(tmp_path, gpu) -> None:
    status, printed = script(tmp_path, "--device", "cpu")
    assert status == 0, printed
    lines = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {name: how for name, (how, _) in ends(lines).items()} == {
        step.name: "passed" for step in gpu.steps("cpu")
    }
    table = (tmp_path / "table.md").read_text()
    for what in ("decode, fp32, 1 stream", "decode, fp32, 32 streams", "prefill, fp32, 256 tokens"):
        assert len(re.findall(rf"^\| {what} \| tiny", table, re.MULTILINE)) == 2
    assert len(re.findall(r"^\| training step, .* \| transformers \|", table, re.MULTILINE)) == 1
    assert len(re.findall(r"^\| PPO, ", table, re.MULTILINE)) == 2
