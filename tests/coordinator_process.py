"""A coordinator replica as a process of its own, to be killed: `python coordinator_process.py
DATA_DIR REDIS_URL LEASE_S`. Says "ready" on standard output."""

from __future__ import annotations

import asyncio
import sys

from plinth.coordinator.service import build
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext, run_stage
from scripted_stages import TOKEN


async def main(data_dir: str, redis_url: str, lease_s: str) -> None:
    settings = load_settings(
        data_dir=data_dir,
        redis_url=redis_url,
        cluster_token=TOKEN,
        log_level="warning",
        coordinator={"lease_s": float(lease_s)},
    )
    context = await StageContext.open(settings, stage="coordinator")
    await run_stage(context, build(context))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
