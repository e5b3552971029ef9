"""`llm` with a terminal's log piped in, ANSI colours and all, and a second turn on top of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASE, KEY, MODEL = sys.argv[1:4]
LOG = (
    "\x1b[32mINFO\x1b[0m  starting the server\r\n"
    "\x1b[1;31mERROR\x1b[0m disk full: /var/lib/app\x07\x1b[K\n"
)


def llm(*arguments: str, piped: str = "") -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("llm"), *arguments],
        input=piped,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


with tempfile.TemporaryDirectory() as home:
    os.environ["LLM_USER_PATH"] = home
    Path(home, "extra-openai-models.yaml").write_text(
        f"- model_id: plinth\n  model_name: {MODEL}\n  api_base: {BASE}\n  api_key_name: plinth\n"
    )
    llm("keys", "set", "plinth", "--value", KEY)
    options = ("-m", "plinth", "-o", "temperature", "0", "-o", "max_tokens", "40")
    answer = llm(*options, "What went wrong? Answer in one sentence.", piped=LOG)
    assert "disk" in answer.lower(), answer
    turn = llm("-c", *options[2:], "What is the capital of France?")
    assert "Paris" in turn, turn
    whole = llm("--no-stream", *options, "What is the capital of France?")
    assert whole == "The capital of France is Paris.", whole
print(f"of the log {answer!r}; then {turn!r}; whole {whole!r}")
