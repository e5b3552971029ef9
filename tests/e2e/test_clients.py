"""What people use, from PyPI and unchanged, does its usual job against a running stack.

Each client lives in an environment of its own (`make clients`), where a script of tests/clients
runs it, asserts what it should have got, and prints one line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plinth.shared.store import ArtifactStore
from real_stack import RealStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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
)
# No client asks its maker's hosts for anything: prices, datasets, news.
ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "0"}


def _does_its_job(python: Path | str, script: str, real: RealStack) -> None:
    tokenizer = ArtifactStore(real.stack.settings.store()).fetch(real.model)
    done = subprocess.run(
        [python, SCRIPTS / f"{script}.py", f"{real.rest}/v1", real.key, real.model, tokenizer],
        env={**os.environ, **ALONE, "PYTHONPATH": ""},
        capture_output=True,
        check=False,
        text=True,
        timeout=590,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    print(f"{script}: {done.stdout.splitlines()[-1]}")


@pytest.mark.parametrize(("environment", "script"), CLIENTS)
def test_it_does_its_usual_job(real: RealStack, environment: str, script: str) -> None:
    python = Path(sys.prefix) / "clients" / environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is not there: `make clients` makes it, from {SCRIPTS}")
    _does_its_job(python, script, real)


def test_a_page_of_another_origin_shows_what_a_model_said(real: RealStack) -> None:
    if shutil.which("chromium") is None:
        pytest.fail("chromium is not installed: apt-get install chromium")
    _does_its_job(sys.executable, "browser_page", real)
