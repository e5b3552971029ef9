"""DPO and the reward model for `align.py`: pairs per second of the product's own loop.

The parent makes the data once for all peers: `pairs.json`, in the order in which our loop reads
them, for the peers; the same pairs as a dataset for us; a reward model's start with its head.
Every side has exactly 128 tokens, so no peer gains or loses by how it pads.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

SIDE, PROMPT, VOCABULARY = 128, 8, 32
PAIRS, STEPS, WARM, LEARNING_RATE = 8, 18, 2, 1e-4  # a batch, steps in all and before the clock
# Losses are compared step by step: the last ones have seen all updates but one.
LOSS_TOLERANCE = 2e-3


def make_pairs(folder: Path, algorithm: str, seed: int) -> None:
    """Beside the model in `folder`: pairs.json, dataset/, reward/."""
    from plinth.models.reward import RewardModel, save_reward_model
    from plinth.models.weights import load_decoder
    from plinth.trainer.data.sampler import BatchSampler
    from plinth.trainer.data.shards import DatasetInfo, SplitWriter, token_dtype, write_info

    generator = torch.Generator().manual_seed(seed)
    count = PAIRS * STEPS
    prompts = torch.randint(1, VOCABULARY, (count, PROMPT), generator=generator).tolist()
    answers = torch.randint(1, VOCABULARY, (2, count, SIDE - PROMPT), generator=generator)
    # TRL's DPO closes answers by the end token (0) unless it is there; a reward model of
    # transformers finds a sequence's end by the padding (0), which must not be.
    answers[:, :, -1] = 0 if algorithm == "dpo" else 1
    chosen, rejected = answers.tolist()
    order = BatchSampler(count, seed).at(0, count).tolist()
    lines = [
        {"prompt_ids": prompts[i], "chosen_ids": chosen[i], "rejected_ids": rejected[i]}
        for i in order
    ]
    (folder / "pairs.json").write_text(json.dumps(lines))
    data, dtype = folder / "dataset", token_dtype(VOCABULARY)
    data.mkdir()
    splits = {}
    for name in ("train", "validation"):
        writer = SplitWriter(data, name, dtype, masked=True, limit=1 << 30)
        for i in range(count if name == "train" else 0):
            for answer in (chosen[i], rejected[i]):
                writer.add(prompts[i] + answer, 0, [0] * PROMPT + [1] * len(answer))
        writer.close()
        splits[name] = writer.info
    write_info(data, DatasetInfo("pairs", "", "", VOCABULARY, 0, 0, dtype, splits))
    save_reward_model(RewardModel.of(load_decoder(folder), seed), folder / "reward")


def run_self(algorithm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Steps of the training loop, with the reference computed before the clock starts."""
    from plinth.trainer.loop import Group, TrainConfig
    from plinth.trainer.loop.job_folder import JobFolder
    from plinth.trainer.loop.setup import set_up
    from plinth.trainer.loop.train import take_step

    config = TrainConfig(
        objective=algorithm,
        dataset=str(folder / "dataset"),
        init_from=str(folder),
        model=None,
        sequence_length=SIDE,
        batch_size=PAIRS,
        micro_batch_size=PAIRS,
        steps=STEPS,
        max_seconds=0,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        precision="fp32",
        seed=seed,
        threads=torch.get_num_threads(),
    )
    job = folder / f"job-{algorithm}"
    job.mkdir()
    run = set_up(config, JobFolder(job), Group())
    losses, marks = [], []
    for _ in range(STEPS):
        losses.append(float(take_step(run, LEARNING_RATE).loss))
        marks.append(now())
    return {"peer": "self", "algo": algorithm, "seed": seed, **figures(losses, marks)}


def now() -> tuple[float, float]:
    """Seconds on the wall, and of this process on all its CPUs."""
    return time.perf_counter(), time.process_time()


def figures(losses: list[float], marks: list[tuple[float, float]]) -> dict[str, Any]:
    """`marks` are when each step ended; those after the warm-up count.

    `cpu_s` says more than `seconds` on a machine that others use too.
    """
    seconds, cpu_s = (end - begin for begin, end in zip(marks[WARM - 1], marks[-1], strict=True))
    pairs = PAIRS * (STEPS - WARM)
    return {
        "samples": pairs,
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "pairs_s": round(pairs / seconds, 2),
        "losses": [round(loss, 6) for loss in losses],
        "threads": torch.get_num_threads(),
    }


def compared(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Whether the peers' losses are ours, step by step; None unless both ran."""
    losses = [line["losses"] for line in lines if "losses" in line]
    if len(losses) < 2:
        return None
    pairs = zip(losses[0], losses[-1], strict=True)
    worst = max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)
    return {
        "check": "losses",
        "algo": lines[0]["algo"],
        "seed": lines[0]["seed"],
        "max_difference": worst,
        "equal": worst <= LOSS_TOLERANCE,
        "ratio": round(lines[0]["pairs_s"] / lines[-1]["pairs_s"], 3),
        "cpu_ratio": round(lines[-1]["cpu_s"] / lines[0]["cpu_s"], 3),
    }


def median_ratio(algorithm: str, checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all turns: a machine's own rate wanders by a tenth from one minute to the next."""
    ratios = [check["ratio"] for check in checks]
    middle = round(median(ratios), 3)
    return {"check": "pairs_s", "algo": algorithm, "ratio": middle, "ratios": ratios}
