"""Rows for jobs and runs."""

from __future__ import annotations

from api_rows import OTHER, Call
from plinth.v1 import jobs_pb2 as job
from plinth.v1 import runs_pb2 as run

_JOB = job.JobSpec(output_name="text", prepare=job.PrepareSpec(builtin="stdlib", max_bytes=1000))

JOBS = [
    Call(
        "JobService.CreateJob",
        lambda _, who: job.CreateJobRequest(job_id=f"of-{who}", job=job.Job(spec=_JOB)),
    ),
    Call("JobService.GetJob", lambda *_: job.GetJobRequest(name="jobs/of-acme")),
    Call("JobService.ListJobs", lambda *_: job.ListJobsRequest()),
    Call("JobService.WatchJob", lambda *_: job.WatchJobRequest(name="jobs/of-acme")),
    Call("JobService.CancelJob", lambda *_: job.CancelJobRequest(name="jobs/of-acme"), OTHER),
    Call("JobService.DeleteJob", lambda *_: job.DeleteJobRequest(name="jobs/of-acme"), OTHER),
]

_PIPELINE = """
name: waits
steps:
  text: {kind: data, builtin: stdlib}
"""

RUNS = [
    Call(
        "RunService.CreateRun",
        lambda _, who: run.CreateRunRequest(
            run_id=f"of-{who}", run=run.Run(spec=run.RunSpec(pipeline_yaml=_PIPELINE))
        ),
    ),
    Call("RunService.GetRun", lambda *_: run.GetRunRequest(name="runs/of-acme")),
    Call("RunService.ListRuns", lambda *_: run.ListRunsRequest()),
    Call("RunService.WatchRun", lambda *_: run.WatchRunRequest(name="runs/of-acme")),
    Call("RunService.PauseRun", lambda *_: run.PauseRunRequest(name="runs/of-acme"), OTHER),
    Call("RunService.ResumeRun", lambda *_: run.ResumeRunRequest(name="runs/of-acme"), OTHER),
    Call("RunService.CancelRun", lambda *_: run.CancelRunRequest(name="runs/of-acme"), OTHER),
    Call(
        "RunService.ForkRun",
        lambda _, who: run.ForkRunRequest(
            name="runs/of-acme", run_id=f"fork-of-{who}", from_step="text"
        ),
        until_not="RUN_NOT_ENDED",
    ),
    Call(
        "RunService.DeleteRun",
        lambda *_: run.DeleteRunRequest(name="runs/of-acme"),
        OTHER,
        until_not="RUN_NOT_ENDED",
    ),
]
