"""What people use, from PyPI and unchanged, does its usual job against a running stack.

Each client lives in an environment of its own (`make clients`), where a script of tests/clients
runs it, asserts what it should have got, and prints one line. The gateway's own count says that no
request failed behind a client's back, whatever a client tries again or leaves out of its report.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clients.gateway_counts import answered
from plinth.shared.store import ArtifactStore
from real_stack import RealStack

# The one bound on a client, which only one that hangs spends: the scripts have none of their own.
CLIENT_S = 900
# The first test brings the stack up.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(CLIENT_S + 600)]

SCRIPTS = Path(__file__).parents[1] / "clients"
# Environment and script.
CLIENTS = (
    ("sdk", "openai_sdk"),  # OpenAI's SDK from 3 on
    ("frameworks", "openai_sdk"),  # and before
    ("sdk", "litellm_client"),
    ("frameworks", "langchain_client"),
    ("frameworks", "llama_index_client"),
    ("frameworks", "instructor_client"),
    ("frameworks", "autogen_client"),
    ("sdk", "llm_tool"),
    ("guidellm", "guidellm_benchmark"),
    ("aiperf", "aiperf_profile"),
    ("lm-eval-0.4.9", "lm_eval_generation"),
    ("lm-eval-0.4.13", "lm_eval_generation"),
    ("triton", "triton_client"),
)
# No client asks its maker's hosts for anything: prices, datasets, news.
ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "0"}


# What is refused, by path and status: a model that isn't there; vLLM's /tokenizer_info and
# /tokenize, for which lm-eval looks and without which it tokenizes by itself.
NO_MODEL = {("/v1/chat/completions", "404"): 1}
REFUSED = {
    ("sdk", "openai_sdk"): NO_MODEL,
    ("frameworks", "openai_sdk"): NO_MODEL,
    ("lm-eval-0.4.13", "lm_eval_generation"): {("other", "404"): 3},
}


def _does_its_job(
    python: Path | str, script: str, real: RealStack, refused: dict[tuple[str, str], int]
) -> None:
    tokenizer = ArtifactStore(real.stack.settings.store()).fetch(real.model)
    base = f"{real.rest}/v1"
    before = answered(base)
    code, out, err = _output(
        [python, SCRIPTS / f"{script}.py", base, real.key, real.model, tokenizer, real.grpc]
    )
    assert code == 0, f"{out}\n{err}"
    codes = answered(base) - before
    print(f"{script}: {out.splitlines()[-1]}; at the gateway {codes.total()} requests")
    failed = {key: count for key, count in codes.items() if key[1] != "200"}
    assert failed == refused, f"{codes}\n{out}\n{err}"


def _output(command: list[Path | str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr. What it started ends with it: clients have workers."""
    with subprocess.Popen(
        command,
        env={**os.environ, **ALONE, "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=CLIENT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


@pytest.mark.parametrize(("environment", "script"), CLIENTS)
def test_it_does_its_usual_job(real: RealStack, environment: str, script: str) -> None:
    python = Path(sys.prefix) / "clients" / environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is not there: `make clients` makes it, from {SCRIPTS}")
    _does_its_job(python, script, real, REFUSED.get((environment, script), {}))


def test_a_page_of_another_origin_shows_what_a_model_said(real: RealStack) -> None:
    if shutil.which("chromium") is None:
        pytest.fail("chromium is not installed: apt-get install chromium")
    _does_its_job(sys.executable, "browser_page", real, {("/v1/models", "401"): 1})  # a wrong key
