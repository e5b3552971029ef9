"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plinth.client.calls.artifacts import ArtifactService, AsyncArtifactService
    from plinth.client.calls.deployments import AsyncDeploymentService, DeploymentService
    from plinth.client.calls.generation import AsyncGenerationService, GenerationService
    from plinth.client.calls.jobs import AsyncJobService, JobService
    from plinth.client.calls.keys import AsyncKeyService, KeyService
    from plinth.client.calls.models import AsyncModelService, ModelService
    from plinth.client.calls.operations import AsyncOperationsService, OperationsService
    from plinth.client.calls.preferences import AsyncPreferenceService, PreferenceService
    from plinth.client.calls.rewards import AsyncRewardService, RewardService
    from plinth.client.calls.runs import AsyncRunService, RunService
    from plinth.client.calls.tokenization import AsyncTokenizationService, TokenizationService


class Services:
    """The public services: calls that block. Each is imported when it is first used."""

    def __init__(self, transport: Any) -> None:
        self._calls = transport

    @cached_property
    def artifacts(self) -> ArtifactService:
        from plinth.client.calls.artifacts import ArtifactService

        return ArtifactService(self._calls)

    @cached_property
    def deployments(self) -> DeploymentService:
        from plinth.client.calls.deployments import DeploymentService

        return DeploymentService(self._calls)

    @cached_property
    def generation(self) -> GenerationService:
        from plinth.client.calls.generation import GenerationService

        return GenerationService(self._calls)

    @cached_property
    def jobs(self) -> JobService:
        from plinth.client.calls.jobs import JobService

        return JobService(self._calls)

    @cached_property
    def keys(self) -> KeyService:
        from plinth.client.calls.keys import KeyService

        return KeyService(self._calls)

    @cached_property
    def models(self) -> ModelService:
        from plinth.client.calls.models import ModelService

        return ModelService(self._calls)

    @cached_property
    def operations(self) -> OperationsService:
        from plinth.client.calls.operations import OperationsService

        return OperationsService(self._calls)

    @cached_property
    def preferences(self) -> PreferenceService:
        from plinth.client.calls.preferences import PreferenceService

        return PreferenceService(self._calls)

    @cached_property
    def rewards(self) -> RewardService:
        from plinth.client.calls.rewards import RewardService

        return RewardService(self._calls)

    @cached_property
    def runs(self) -> RunService:
        from plinth.client.calls.runs import RunService

        return RunService(self._calls)

    @cached_property
    def tokenization(self) -> TokenizationService:
        from plinth.client.calls.tokenization import TokenizationService

        return TokenizationService(self._calls)


class AsyncServices:
    """The public services: calls for asyncio. Each is imported when it is first used."""

    def __init__(self, transport: Any) -> None:
        self._calls = transport

    @cached_property
    def artifacts(self) -> AsyncArtifactService:
        from plinth.client.calls.artifacts import AsyncArtifactService

        return AsyncArtifactService(self._calls)

    @cached_property
    def deployments(self) -> AsyncDeploymentService:
        from plinth.client.calls.deployments import AsyncDeploymentService

        return AsyncDeploymentService(self._calls)

    @cached_property
    def generation(self) -> AsyncGenerationService:
        from plinth.client.calls.generation import AsyncGenerationService

        return AsyncGenerationService(self._calls)

    @cached_property
    def jobs(self) -> AsyncJobService:
        from plinth.client.calls.jobs import AsyncJobService

        return AsyncJobService(self._calls)

    @cached_property
    def keys(self) -> AsyncKeyService:
        from plinth.client.calls.keys import AsyncKeyService

        return AsyncKeyService(self._calls)

    @cached_property
    def models(self) -> AsyncModelService:
        from plinth.client.calls.models import AsyncModelService

        return AsyncModelService(self._calls)

    @cached_property
    def operations(self) -> AsyncOperationsService:
        from plinth.client.calls.operations import AsyncOperationsService

        return AsyncOperationsService(self._calls)

    @cached_property
    def preferences(self) -> AsyncPreferenceService:
        from plinth.client.calls.preferences import AsyncPreferenceService

        return AsyncPreferenceService(self._calls)

    @cached_property
    def rewards(self) -> AsyncRewardService:
        from plinth.client.calls.rewards import AsyncRewardService

        return AsyncRewardService(self._calls)

    @cached_property
    def runs(self) -> AsyncRunService:
        from plinth.client.calls.runs import AsyncRunService

        return AsyncRunService(self._calls)

    @cached_property
    def tokenization(self) -> AsyncTokenizationService:
        from plinth.client.calls.tokenization import AsyncTokenizationService

        return AsyncTokenizationService(self._calls)
