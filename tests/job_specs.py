"""Specifications of jobs in the words that pipelines use: train_spec(objective="clm", …)."""

from __future__ import annotations

from typing import Any

from plinth.shared.api.words import given
from plinth.v1 import jobs_pb2 as pb


def train_spec(**fields: Any) -> pb.TrainSpec:
    """max_seconds: as a number."""
    if "max_seconds" in fields:
        fields["max_duration"] = fields.pop("max_seconds")
    return given(pb.TrainSpec, fields)


def model_spec(**fields: Any) -> pb.ModelSpec:
    return given(pb.ModelSpec, fields)


def prepare_spec(**fields: Any) -> pb.PrepareSpec:
    return given(pb.PrepareSpec, fields)


def pair_spec(**fields: Any) -> pb.PairSpec:
    return given(pb.PairSpec, fields)


def policy_spec(**fields: Any) -> pb.PolicySpec:
    return given(pb.PolicySpec, fields)


def create_job(job_id: str, spec: pb.JobSpec) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(job_id=job_id, job=pb.Job(spec=spec))
