"""What one training run is: frozen, checked, and written to the job's folder as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from plinth.models.weights import weights_digest

POLICY_OBJECTIVES = ("ppo", "grpo", "rloo")
# The forms of data that each objective learns from. A policy takes the prompts alone.
LEARNS_FROM = {
    "clm": ("text",),
    "sft": ("messages",),
    "dpo": ("pairs",),
    "reward": ("pairs",),
    **dict.fromkeys(POLICY_OBJECTIVES, ("messages", "pairs", "prompts")),
}
OBJECTIVES = tuple(LEARNS_FROM)
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """Sizes are in tokens and sequences; paths are local folders.

    Either `init_from` names a model folder or `model` holds the fields of a new ModelConfig.
    """

    objective: str
    dataset: str
    init_from: str
    model: dict[str, Any] | None
    sequence_length: int
    batch_size: int  # per optimiser step, over all workers
    micro_batch_size: int  # per forward pass and worker
    steps: int  # 0: as many as fit max_seconds
    max_seconds: float
    learning_rate: float
    schedule: str = "wsd"
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.4
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: str = "auto"
    seed: int = 0
    workers: int = 1
    threads: int = 0  # per worker; 0: the machine's cores shared evenly
    checkpoint_every: int = 0  # steps; 0: by time
    eval_every: int = 0  # steps; 0: at the end only
    device: str = "cpu"
    pairs: dict[str, Any] | None = None  # fields of PairOptions, for "dpo" and "reward"
    policy: dict[str, Any] | None = None  # fields of PolicyConfig, for policy objectives
    reward: str = ""  # folder of the reward model that judges a policy; or
    rewards: tuple[dict[str, Any], ...] = ()  # RewardSource as JSON: the reward stage judges
    candidates: tuple[str, ...] = ()  # folders of the models that "compare" compares
    lora: dict[str, Any] | None = None  # fields of LoraConfig: train adapters, freeze the rest
    # Digests of what is in `init_from`, `reward` and `rewards`, and the step's version: a folder's
    # place says nothing about what it holds.
    made_from: dict[str, str] = field(default_factory=dict)
    base: str = ""  # what the model in init_from is called, for an adapter's files
    background: bool = False  # CPU workers yield to everybody else (SCHED_IDLE)

    def write(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> TrainConfig:
        return cls(**json.loads((folder / "config.json").read_text()))

    def digest(self) -> str:
        """Names the result: everything but where things lie and how politely they run."""
        value = asdict(self)
        for name in (
            "dataset",
            "init_from",
            "reward",
            "candidates",
            "base",
            "background",
            "checkpoint_every",
            "eval_every",
        ):
            del value[name]
        if self.lora is None:
            del value["lora"]
        data = (Path(self.dataset) / "dataset.json").read_bytes()
        text = json.dumps(value, sort_keys=True) + sha256(data).hexdigest()
        if self.lora is not None:  # checkpoints hold no base: it must be the very same
            text += weights_digest(Path(self.init_from))
        return f"sha256:{sha256(text.encode()).hexdigest()}"
