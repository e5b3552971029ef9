"""guidellm: six requests of synthetic text, two at a time, streamed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASE, KEY, MODEL, TOKENIZER = sys.argv[1:5]
REQUESTS, OUTPUT_TOKENS = 6, 16
target = BASE.removesuffix("/v1")

said = []
for endpoint in ("/v1/chat/completions", "/v1/completions"):
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("guidellm"), "run", "--disable-console"),
                *(
                    "--backend",
                    f"kind=openai_http,target={target},model={MODEL},"
                    f"api_key={KEY},request_format={endpoint}",
                ),
                *("--profile", "kind=concurrent,streams=2"),
                *("--constraint", f"kind=max_requests,count={REQUESTS}"),
                *("--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"),
                *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={OUTPUT_TOKENS}"),
                *("--output", f"kind=json,path={report}"),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            check=False,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    errors = {request["info"]["error"] for request in benchmark["requests"]["errored"] or []}
    # On a machine with many times more to do than cores it left one request out of its report once
    # in 19 runs, among neither the failed nor the cut off: what the gateway failed is there.
    successful = totals["successful"]
    assert not totals["errored"] and not totals["incomplete"], (totals, errors)
    assert successful >= REQUESTS - 1, (totals, benchmark["scheduler_state"])
    tokens = benchmark["metrics"]["output_token_count"]["successful"]["total_sum"]
    assert tokens == successful * OUTPUT_TOKENS, tokens
    said.append(f"{endpoint}: {successful} requests, {tokens:.0f} tokens, no error")
print("; ".join(said))
