"""What a run may change: what its owner's tenant has made, or nobody. A pipeline reaches aliases,
served models and names of artifacts, as calls do, and is refused where those calls would be.

`check_rights` asks when a run is submitted, so that nobody trains for a day in vain; the steps that
change the world ask again when they do. All calls block on the store.
"""

from __future__ import annotations

from plinth.coordinator.pipeline import Pipeline
from plinth.coordinator.steps.canary_spec import CanarySpec
from plinth.coordinator.steps.contract import Tools
from plinth.coordinator.steps.publish import PublishSpec
from plinth.coordinator.steps.serve import ServeSpec
from plinth.coordinator.steps.train import TrainSpec
from plinth.shared.artifact_rights import check_alias, check_next_version
from plinth.shared.errors import PermissionDenied
from plinth.shared.identity import Principal
from plinth.shared.kinds import ADAPTER_SUFFIX


def check_rights(pipeline: Pipeline, tools: Tools, principal: Principal) -> None:
    """PermissionDenied (OTHER_TENANT) for the first step that would change what is another
    tenant's: the next version of its artifact, its alias, its deployment."""
    for step, spec in pipeline.steps.items():
        try:
            if not isinstance(spec, PublishSpec | ServeSpec | CanarySpec):  # they make none
                name = pipeline.output_name(step)
                check_next_version(tools.store, name, principal)
                if isinstance(spec, TrainSpec) and spec.lora is not None:
                    check_next_version(tools.store, name + ADAPTER_SUFFIX, principal)
            if isinstance(spec, ServeSpec | CanarySpec):
                tools.deployments.check_owner(spec.name, principal)
            if isinstance(spec, PublishSpec | CanarySpec) and not spec.model.startswith("$"):
                model = tools.store.get(spec.model)
                check_alias(tools.store, model, spec.alias, principal)
        except PermissionDenied as refused:
            raise PermissionDenied(
                f"steps.{step}: {refused.message}", reason=refused.reason, field=f"steps.{step}"
            ) from refused
