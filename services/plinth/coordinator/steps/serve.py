"""Step "serve": puts a model into the desired state and waits until all its shards answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from plinth.coordinator.deployments import put, ready_shards, until_ready
from plinth.coordinator.steps.contract import (
    Input,
    Name,
    Progress,
    StepOutcome,
    StepSpec,
    Tools,
    Work,
)
from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared.source_roots import SourceRoots


class ServeSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {"model": frozenset({"model"})}

    kind: Literal["serve"]
    model: Input
    # The name that clients ask for.
    name: Name
    shards: int = Field(default=1, ge=1, le=64)
    # Up to so many while load asks for more; 0: always `shards`.
    max_shards: int = Field(default=0, ge=0, le=64)
    cpus_per_shard: float = Field(default=0, ge=0, le=1024)  # 0: the platform's default
    gpus_per_shard: float = Field(default=0, ge=0, le=64)
    kv_cache_bytes: int = Field(default=0, ge=0)
    speculation: str = Field(default="", pattern=r"^(|off|lookup|draft:.{1,200})$")
    # How long a shard may take to come up before the step fails.
    ready_within_s: float = Field(default=600, gt=0, le=86_400)

    def produces(self) -> str:
        return "model"


class ServeStep:
    spec: type[StepSpec] = ServeSpec
    pure = False

    def surroundings(self, spec: ServeSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, ServeSpec)
        model = work.inputs["model"]
        wanted = pb.DeploymentRecord(
            name=spec.name,
            artifact=model.ref,
            shards=spec.shards,
            max_shards=spec.max_shards,
            cpus_per_shard=spec.cpus_per_shard,
            gpus_per_shard=spec.gpus_per_shard,
            kv_cache_bytes=spec.kv_cache_bytes,
            speculation=spec.speculation,
            traffic_share=1.0,
        )
        await asyncio.to_thread(tools.deployments.check_owner, spec.name, work.principal)
        changed = await put(tools.deployments, wanted)
        there = await ready_shards(tools.registry, wanted) >= spec.shards
        async for ready in until_ready(tools.registry, wanted, within_s=spec.ready_within_s):
            yield Progress(ready / spec.shards, f"{ready} of {spec.shards} shards ready")
        metrics = {"name": spec.name, "shards": spec.shards}
        yield StepOutcome(model.ref, metrics, reused=there and not changed)

    async def abandon(self, work: Work, tools: Tools) -> None:
        """What the deployment was before is not known any more, so the one that this step wanted
        stays, as any does until it is deleted; a coordinator that is late adds nothing."""
        assert isinstance(work.spec, ServeSpec)
        await asyncio.to_thread(tools.deployments.claim, work.spec.name)
