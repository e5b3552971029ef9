"""Starts a pipeline and watches its run to the end, with plinth.client for asyncio:
python watch_run.py RUN_ID PIPELINE.yaml

Over as many connections as that takes; started again with the same id, it watches the same run.
"""

import asyncio
import sys
from pathlib import Path

from plinth.client import AsyncClient
from plinth.v1 import runs_pb2


async def main(run_id: str, pipeline: str) -> None:
    spec = runs_pb2.RunSpec(pipeline_yaml=pipeline)
    async with AsyncClient() as plinth:
        run = await plinth.runs.create_run(run_id, run=runs_pb2.Run(spec=spec))
        async for event in plinth.runs.watch_run(run.name):
            run = event.run
            steps = (f"{s.step_id} {runs_pb2.StepState.Name(s.state)}" for s in run.status.steps)
            print(runs_pb2.RunState.Name(run.status.state), ", ".join(steps))
    if run.status.state != runs_pb2.RUN_STATE_SUCCEEDED:
        sys.exit(run.status.error)


if len(sys.argv) != 3:
    sys.exit(__doc__)
asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text()))
