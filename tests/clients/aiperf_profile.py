"""aiperf: eight streamed chats and eight completions, two at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASE, KEY, MODEL, TOKENIZER = sys.argv[1:5]
REQUESTS, OUTPUT_TOKENS = 8, 16
# aiperf 0.13.0 takes a folder for a tokenizer only while it believes that a hub could be reached.
os.environ.pop("HF_HUB_OFFLINE", None)

said = []
for endpoint, further in (
    ("chat", ("--per-chunk-usage",)),
    ("completions", ()),
):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("aiperf"), "profile", "--model", MODEL),
                *("--url", BASE.removesuffix("/v1"), "--api-key", KEY, "--tokenizer", TOKENIZER),
                *("--endpoint-type", endpoint, "--streaming", *further),
                "--use-server-token-count",
                *("--request-count", str(REQUESTS), "--concurrency", "2"),
                *("--prompt-input-tokens-mean", "32"),
                *("--prompt-output-tokens-mean", str(OUTPUT_TOKENS)),
                *("--extra-inputs", "ignore_eos:true", "--workers-max", "1"),
                *("--no-gpu-telemetry", "--ui-type", "none", "--output-artifact-dir", folder),
            ],
            capture_output=True,
            check=False,
            text=True,
            timeout=240,
        )
        report = Path(folder, "profile_export_aiperf.json")
        assert done.returncode == 0 and report.exists(), done.stdout + done.stderr
        result = json.loads(report.read_text())
    assert not result["error_summary"], result["error_summary"]
    assert result["request_count"]["avg"] == REQUESTS
    length = result["output_sequence_length"]["avg"]
    assert length == OUTPUT_TOKENS, length
    speed = result["output_token_throughput"]["avg"]
    said.append(f"{endpoint}: {REQUESTS} requests of {length:.0f} tokens, {speed:.0f} tokens/s")
print("; ".join(said))
