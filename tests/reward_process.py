"""A reward replica as a process of its own, to be killed: `python reward_process.py DATA_DIR
REDIS_URL LEASE_S`. Says "ready" on standard output, then what its log says."""

from __future__ import annotations

import asyncio
import sys

from plinth.reward.service import build
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext, run_stage


async def main(data_dir: str, redis_url: str, lease_s: str) -> None:
    settings = load_settings(
        data_dir=data_dir,
        redis_url=redis_url,
        reward={"lease_s": float(lease_s), "tasks": 1},
    )
    context = await StageContext.open(settings, stage="reward")
    await run_stage(context, build(context))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
