"""guidellm: six requests of synthetic text, two at a time, streamed; the gateway counts as many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway_counts import answered

BASE, KEY, MODEL, TOKENIZER = sys.argv[1:5]
REQUESTS, OUTPUT_TOKENS = 6, 16
# Its report ends when nothing new came for this long (by default 0.1 s) after a thread of its own
# took up the last result, which that thread may not have handed on by then (guidellm 0.8.1:
# `WorkerGroupState.received_callback` sets `shutdown_event`, `request_updates` breaks at it). On a
# busy machine the report then lacked a request that was answered.
POLL_S = 3
target = BASE.removesuffix("/v1")

said = []
for endpoint in ("/v1/chat/completions", "/v1/completions"):
    before = answered(BASE)
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
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "GUIDELLM__MP_POLL_INTERVAL": str(POLL_S),
            },
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    errors = {request["info"]["error"] for request in benchmark["requests"]["errored"] or []}
    served = answered(BASE) - before
    assert served == {(endpoint, "200"): REQUESTS}, (served, totals)
    assert totals == {**dict.fromkeys(totals, 0), "successful": REQUESTS, "total": REQUESTS}, (
        totals,
        errors,
        benchmark["scheduler_state"],
    )
    tokens = benchmark["metrics"]["output_token_count"]["successful"]["total_sum"]
    assert tokens == REQUESTS * OUTPUT_TOKENS, tokens
    said.append(f"{endpoint}: {REQUESTS} requests, {tokens:.0f} tokens, no error")
print("; ".join(said))
