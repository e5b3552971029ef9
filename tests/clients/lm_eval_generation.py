"""lm-eval's generation tasks, by its chat model and by its completions model (in batches of 10)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

BASE, KEY, MODEL, TOKENIZER = sys.argv[1:5]
TASKS = Path(__file__).parent / "lm_eval_tasks"
# Whichever way it is asked, the model knows most of the ten capitals.
KNOWN = 0.6

said = [f"lm-eval {version('lm_eval')}"]
for model, endpoint, further, options in (
    ("local-chat-completions", "chat/completions", "num_concurrent=4", ["--apply_chat_template"]),
    ("local-completions", "completions", f"tokenizer={TOKENIZER}", ["--batch_size", "10"]),
):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("lm_eval"), "--model", model, "--model_args"),
                f"model={MODEL},base_url={BASE}/{endpoint},max_retries=1,{further}",
                *("--tasks", "capitals", "--include_path", TASKS, "--output_path", folder),
                *options,
            ],
            cwd=TASKS,
            env={**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_HOME": folder},
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (report,) = Path(folder).glob("**/results_*.json")
        score = json.loads(report.read_text())["results"]["capitals"]["exact_match,named"]
    assert score >= KNOWN, f"{model}: {score}"
    said.append(f"{model}: exact_match {score}")
print("; ".join(said))
