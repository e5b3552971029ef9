"""Everything that a run needs before its first step, made from its config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from plinth.models.adapters.lora import LoraConfig, attach, merged_tensors
from plinth.models.adapters.peft_format import save_adapter
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.dtypes import change_lost
from plinth.models.hf import config as hf_config
from plinth.models.inherited_settings import carry_settings, pad_apart
from plinth.models.reward import RewardModel, save_reward_model
from plinth.models.weights import load_decoder, save_decoder
from plinth.shared.errors import InvalidArgument, PlinthError
from plinth.trainer.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from plinth.trainer.data.sampler import BatchSampler
from plinth.trainer.data.shards import DatasetInfo, Split, read_info
from plinth.trainer.disk import disk_error
from plinth.trainer.finite import require_finite_folder
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.machine import choose_precision, choose_threads
from plinth.trainer.objectives.batch import Objective
from plinth.trainer.objectives.clm import CausalLm
from plinth.trainer.objectives.dpo import DirectPreference
from plinth.trainer.objectives.pairs import PairOptions
from plinth.trainer.objectives.reward import RewardModelling
from plinth.trainer.objectives.sft import SupervisedFineTuning

BETAS, EPS = (0.9, 0.95), 1e-8  # as in GPT-3 (Brown et al. 2020)


@dataclass
class Run:
    """One worker's view of a run."""

    config: TrainConfig
    group: Group
    folder: JobFolder
    objective: Objective
    sampler: BatchSampler
    decoder: Decoder
    optimizer: torch.optim.Optimizer
    state: TrainState

    def autocast(self) -> torch.autocast:
        """The precision that the run has chosen, while it lasts."""
        kind = self.group.device.split(":", maxsplit=1)[0]
        return torch.autocast(kind, torch.bfloat16, enabled=self.state.precision == "bf16")

    def save(self) -> None:
        """Checkpoint; replicas are equal, so one worker writes, and the others wait for it."""
        with self.group.patiently():
            if self.group.rank == 0:
                save_checkpoint(self.folder.checkpoints, self.decoder, self.optimizer, self.state)

    def renew_optimizer(self) -> None:
        self.optimizer = make_optimizer(self.decoder, self.config)

    def save_model(self) -> dict[str, float]:
        """The trained decoder and its dataset's tokenizer, complete or not there at all.

        Adapters are merged into it, and written before it in a folder of their own. Gives the
        figures of `rounding`.
        """
        write_adapter(self.folder, self.config, self.decoder)
        write_model(self.folder, self.config, self._write)
        return rounding(self.folder, self.config, self.decoder)

    def _write(self, out: Path) -> None:
        if isinstance(self.decoder, RewardModel):
            save_reward_model(self.decoder, out)
        else:
            save_decoder(self.decoder, out)


def set_up(config: TrainConfig, folder: JobFolder, group: Group) -> Run:
    """Open the data, make or load the model, and go on from the last checkpoint if there is one."""
    with group.patiently():
        train = Split(Path(config.dataset), "train")
        objective = make_objective(config, train, Split(Path(config.dataset), "validation"))
    if objective.items < config.batch_size:
        raise _too_few(config, objective.items, train.tokens)
    digest = config.digest()
    found = _last_checkpoint(folder, group)
    state = read_state(found, digest) if found else _decide(config, digest, group)
    torch.set_num_threads(state.threads)
    torch.manual_seed(config.seed)
    with group.patiently():
        decoder = make_decoder(config, train).to(group.device)
    run = Run(
        config=config,
        group=group,
        folder=folder,
        objective=objective,
        sampler=BatchSampler(objective.items, config.seed),
        decoder=decoder,
        optimizer=make_optimizer(decoder, config),
        state=state,
    )
    with run.autocast():
        objective.prepare(decoder, group, folder.path, config.micro_batch_size, _used(run))
    if found:
        with group.patiently():
            load_checkpoint(found, run.decoder, run.optimizer)
    return run


def _too_few(config: TrainConfig, items: int, tokens: int) -> InvalidArgument:
    ways = ["add text" if config.objective == "clm" else "add data"]
    if items:
        ways.append(f"make batch_size at most {items}")
    # Of chats and pairs a shorter sequence holds fewer, not more.
    if config.objective == "clm" and (longest := (tokens - 1) // config.batch_size) > 1:
        ways.append(f"make sequence_length at most {longest}")
    return InvalidArgument(
        f"dataset {config.dataset} makes {items} sequences or pairs of {config.sequence_length} "
        f"tokens, fewer than one batch of {config.batch_size}; {', or '.join(ways)}",
        field="batch_size",
    )


def _used(run: Run) -> list[int] | None:
    """The items of all batches, once the number of steps is known."""
    if not run.state.total:
        return None
    items = run.sampler.at(0, run.state.total * run.config.batch_size)
    return sorted(set(items.tolist()))


def write_model(folder: JobFolder, config: TrainConfig, write: Callable[[Path], None]) -> None:
    """What `write` puts into a folder, with the dataset's tokenizer, and what the model's base
    says of special ids and generation: complete or not there."""
    dataset = Path(config.dataset)

    def whole(writing: Path) -> None:
        write(writing)
        shutil.copytree(dataset / "tokenizer", writing, dirs_exist_ok=True)
        if config.init_from:
            carry_settings(Path(config.init_from), writing)
        if config.objective == "reward":
            pad_apart(writing, next(iter(read_info(dataset).stop_ids), None))

    _write_folder(folder.model, "model", whole)


def write_adapter(folder: JobFolder, config: TrainConfig, decoder: Decoder) -> None:
    """The decoder's adapter in PEFT's format, if the run trains one: complete or not there."""
    if config.lora is not None:
        lora, ends = lora_of(config.lora), read_info(Path(config.dataset)).stop_ids
        _write_folder(
            folder.adapter,
            "adapter",
            lambda out: save_adapter(decoder, lora, out, config.base, ends),
        )


def rounding(folder: JobFolder, config: TrainConfig, decoder: Decoder) -> dict[str, float]:
    """What the type of the saved model, its base's, took of what was learned (see `change_lost`);
    nothing where the model is in float32, as it was trained."""
    if set(decoder.stored_dtypes.values()) <= {torch.float32}:
        return {}
    lost = change_lost(Path(config.init_from), merged_tensors(decoder), folder.model)
    return {"lost_to_rounding": lost}


def _write_folder(target: Path, what: str, write: Callable[[Path], None]) -> None:
    writing = target.with_name(f".writing-{what}")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        write(writing)
        require_finite_folder(writing, f"the {what}")
        shutil.rmtree(target, ignore_errors=True)
        writing.rename(target)
    except (OSError, SafetensorError, PlinthError) as failed:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(failed, PlinthError):
            raise
        raise disk_error(failed, target.parent, what) from failed


def make_objective(config: TrainConfig, train: Split, validation: Split) -> Objective:
    length, pad = config.sequence_length, train.info.end_of_text_id
    if config.objective == "clm":
        return CausalLm(train, validation, length)
    if config.objective == "sft":
        return SupervisedFineTuning(train, validation, length, config.seed, pad)
    options = PairOptions(**(config.pairs or {}))
    kind = DirectPreference if config.objective == "dpo" else RewardModelling
    return kind(train, validation, length, pad, options)


def make_decoder(config: TrainConfig, train: Split) -> Decoder:
    """A new decoder from the seed, or the one in `init_from`; ends where the dataset's answers do.

    With `lora` it is frozen, but for a fresh adapter and a reward model's head.
    """
    info = train.info
    if config.init_from:
        decoder = open_decoder(Path(config.init_from), info)
    else:
        assert config.model is not None
        decoder = Decoder(ModelConfig.from_json({**config.model, "vocab_size": info.vocab_size}))
        decoder.init_weights(config.seed)
        ends = (info.eos_id, *info.stop_ids, info.end_of_text_id)
        decoder.config = replace(decoder.config, eos_ids=tuple(dict.fromkeys(ends)))
    if config.objective == "reward":
        decoder = RewardModel.of(decoder, config.seed)
    if config.lora is not None:
        adapt(decoder, config)
    return decoder


def adapt(decoder: Decoder, config: TrainConfig) -> None:
    """Freeze a decoder and put the run's adapter on it; a reward model's head still learns."""
    assert config.lora is not None
    attach(decoder, lora_of(config.lora), config.seed)
    if isinstance(decoder, RewardModel):
        decoder.score.requires_grad_(True)


def lora_of(fields: Mapping[str, Any]) -> LoraConfig:
    """From the fields that a job's folder holds (JSON has no tuples)."""
    return LoraConfig(**{**fields, "targets": tuple(fields.get("targets", ()))})


def open_decoder(folder: Path, info: DatasetInfo) -> Decoder:
    """The model in `folder`; its answers end where it says, and where the dataset's do."""
    decoder = load_decoder(folder)
    ends = (*decoder.config.eos_ids, *info.stop_ids)
    decoder.config = replace(decoder.config, eos_ids=tuple(dict.fromkeys(ends)))
    return decoder


def make_optimizer(decoder: Decoder, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); norms and biases do not decay."""
    trained = [p for p in decoder.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=BETAS,
        eps=EPS,
        fused=True,
    )


def _last_checkpoint(folder: JobFolder, group: Group) -> Path | None:
    """The newest one that the first worker sees, for all."""
    found = checkpoints(folder.checkpoints)
    newest = int(found[-1].name.removeprefix("step-")) if found else -1
    (step,) = group.from_first([newest])
    return folder.checkpoints / f"step-{int(step):08d}" if step >= 0 else None


def _decide(config: TrainConfig, digest: str, group: Group) -> TrainState:
    """What is chosen by the machine at hand; `total` is still 0 where time decides."""
    threads = choose_threads(config.threads, config.workers)
    torch.set_num_threads(threads)
    rows = config.micro_batch_size * config.sequence_length
    width = (config.model or {}).get("hidden") or _hidden(config)
    bf16 = choose_precision(config.precision, group.device, rows, int(width)) == "bf16"
    threads_all, bf16_all = group.from_first([threads, bf16])
    return TrainState(
        config_digest=digest,
        step=0,
        total=config.steps,
        precision="bf16" if bf16_all else "fp32",
        threads=int(threads_all),
    )


def _hidden(config: TrainConfig) -> int:
    value = json.loads((Path(config.init_from) / "config.json").read_text())
    return hf_config.from_hf(value).hidden
