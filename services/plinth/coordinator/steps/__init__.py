"""The kinds of step, by the word that a pipeline file uses. One file each."""

from __future__ import annotations

from collections.abc import Mapping

from plinth.coordinator.steps.canary import CanaryStep
from plinth.coordinator.steps.compare import CompareStep
from plinth.coordinator.steps.contract import StepKind
from plinth.coordinator.steps.data import DataStep
from plinth.coordinator.steps.evaluate import EvaluateStep
from plinth.coordinator.steps.preferences import PreferencesStep
from plinth.coordinator.steps.prompts import PromptsStep
from plinth.coordinator.steps.publish import PublishStep
from plinth.coordinator.steps.sample import SampleStep
from plinth.coordinator.steps.serve import ServeStep
from plinth.coordinator.steps.tokenizer import TokenizerStep
from plinth.coordinator.steps.train import TrainStep
from plinth.coordinator.steps.verify import VerifyStep

STEP_KINDS: Mapping[str, StepKind] = {
    "data": DataStep(),
    "tokenizer": TokenizerStep(),
    "train": TrainStep(),
    "evaluate": EvaluateStep(),
    "compare": CompareStep(),
    "preferences": PreferencesStep(),
    "prompts": PromptsStep(),
    "sample": SampleStep(),
    "verify": VerifyStep(),
    "publish": PublishStep(),
    "serve": ServeStep(),
    "canary": CanaryStep(),
}
