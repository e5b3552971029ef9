"""aiperf: eight streamed chats and eight completions, two at a time; the gateway counts as many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway_counts import answered

BASE, KEY, MODEL, TOKENIZER = sys.argv[1:5]
REQUESTS, OUTPUT_TOKENS = 8, 16
# aiperf 0.13.0 takes a folder for a tokenizer only while it believes that a hub could be reached.
os.environ.pop("HF_HUB_OFFLINE", None)
# A benchmark of ten processes, which expects of each to be up in 30 s and to report every 5 s.
os.environ |= {
    "AIPERF_SERVICE_REGISTRATION_TIMEOUT": "300",
    "AIPERF_SERVICE_START_TIMEOUT": "300",
    "AIPERF_SERVICE_PROFILE_START_TIMEOUT": "300",
    "AIPERF_SERVICE_COMMAND_RESPONSE_TIMEOUT": "300",
    "AIPERF_SERVICE_HEARTBEAT_MISSED_THRESHOLD": "60",
}

PATHS = {"chat": "chat/completions", "completions": "completions"}

said = []
for endpoint, further in (
    ("chat", ("--per-chunk-usage",)),
    ("completions", ()),
):
    before = answered(BASE)
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
        )
        report = Path(folder, "profile_export_aiperf.json")
        assert done.returncode == 0 and report.exists(), done.stdout + done.stderr
        result = json.loads(report.read_text())
    served = answered(BASE) - before
    assert served == {(f"/v1/{PATHS[endpoint]}", "200"): REQUESTS}, served
    assert not result["error_summary"], result["error_summary"]
    assert result["request_count"]["avg"] == REQUESTS
    length = result["output_sequence_length"]["avg"]
    assert length == OUTPUT_TOKENS, length
    speed = result["output_token_throughput"]["avg"]
    said.append(f"{endpoint}: {REQUESTS} requests of {length:.0f} tokens, {speed:.0f} tokens/s")
print("; ".join(said))
