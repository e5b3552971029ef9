"""One run of a peer for `align.py`, inside the peer's own environment: TRL.

python align_trl.py ALGORITHM SEED MODEL_FOLDER UPDATES → one JSON line
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import align_pairs
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

VOCABULARY, PROMPT, RESPONSE, TARGET = 32, 8, 64, 7
SIDES = ("chosen", "rejected")
GOAL, ANSWERS, GROUP, LEARNING_RATE = 0.9, 16, 8, 3e-4


def tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word "wi". TRL wants an end: w0, which min_new_tokens keeps from coming."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="w0", eos_token="w0", padding_side="left"
    )


def prompts(seed: int) -> list[str]:
    """Those of `align.py`."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, VOCABULARY, (1000, PROMPT), generator=generator)
    return [text(row) for row in made.tolist()]


def text(ids: list[int]) -> str:
    """What the tokenizer makes these ids of."""
    return " ".join(f"w{i}" for i in ids)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Stops at the goal; keeps the rewards."""

    def __init__(self) -> None:
        self.batches, self.reached, self.began, self.seconds = 0, False, 0.0, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "reward" in logs:
            self.batches += 1
            self.seconds = time.perf_counter() - self.began
            if logs["reward"] >= GOAL:
                self.reached, control.should_training_stop = True, True


def grpo(seed: int, folder: Path, updates: int) -> Watch:
    """TRL's GRPO: 2 prompts × 8 answers a batch, one step each, no KL."""
    config = trl.GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=ANSWERS,
        num_generations=GROUP,
        max_completion_length=RESPONSE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=updates,
        temperature=1.0,
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        generation_kwargs={"min_new_tokens": RESPONSE},
    )

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [ids.count(TARGET) / len(ids) for ids in completion_ids]

    watch = Watch()
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts(seed)}),
        processing_class=tokenizer(),
        callbacks=[watch],
    )
    trainer.train()
    return watch


class Reached(Exception):
    """PPO's loop looks at no flag: this ends it."""


class WatchPpo(Watch):
    """The same, by PPO's name for the mean reward."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "objective/scores" in logs:
            self.batches += 1
            self.seconds = time.perf_counter() - self.began
            if logs["objective/scores"] >= GOAL:
                self.reached = True
                raise Reached


class ShareSoFar(torch.nn.Module):
    """A hidden state of one number: the share of the target token so far."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        hits_bt = (input_ids == TARGET).float()
        hits_bt[:, :PROMPT] = 0
        return SimpleNamespace(hidden_states=[(hits_bt.cumsum(1) / RESPONSE).unsqueeze(-1)])


class Share(torch.nn.Module):
    """The reward as a model, which is what TRL's PPO takes."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = ShareSoFar(), torch.nn.Identity()


def ppo(seed: int, folder: Path, updates: int) -> Watch:
    """TRL's PPO, tuned: one epoch, λ = 1, no KL, and a value model whose head begins at zero."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=ANSWERS,
        local_rollout_forward_batch_size=ANSWERS,
        num_ppo_epochs=1,
        num_mini_batches=1,
        total_episodes=updates * ANSWERS,
        response_length=RESPONSE,
        temperature=1.0,
        kl_coef=0.0,
        lam=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    # A padding token beyond the vocabulary: TRL hides padding wherever it sees one.
    words = tokenizer()
    words.add_special_tokens({"pad_token": "<pad>"})
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    torch.nn.init.zeros_(value.score.weight)
    watch = WatchPpo()
    trainer = PPOTrainer(
        args=config,
        processing_class=words,
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_model=Share(),
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": words(prompts(seed))["input_ids"]}),
        callbacks=[watch],
    )
    with suppress(Reached):
        trainer.train()
    return watch


# -- pairs ---------------------------------------------------------------------------------------


def on_pairs(algorithm: str, seed: int, folder: Path) -> dict[str, Any]:
    """TRL's DPO, its reference precomputed, or its reward model, on the pairs of the parent."""
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": align_pairs.PAIRS,
        "max_length": align_pairs.SIDE,
        "max_steps": align_pairs.STEPS,
        "learning_rate": align_pairs.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": [],
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    lines = json.loads((folder / "pairs.json").read_text())
    watch = WatchSteps()
    trainer: Any
    if algorithm == "dpo":
        # DPO reads text, and closes each answer by an end token, unless it is there: all end in w0.
        rows = [
            {
                "prompt": f"{text(line['prompt_ids'])} ",
                **{side: text(line[f"{side}_ids"]) for side in SIDES},
            }
            for line in lines
        ]
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=trl.DPOConfig(beta=0.1, precompute_ref_log_probs=True, **common),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            callbacks=[watch],
        )
    else:
        rows = [
            {f"{side}_ids": line["prompt_ids"] + line[f"{side}_ids"] for side in SIDES}
            for line in lines
        ]
        trainer = trl.RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                folder / "reward", num_labels=1, dtype=torch.float32
            ),
            args=trl.RewardConfig(**common),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            callbacks=[watch],
        )
    losses: list[float] = []
    compute = trainer.compute_loss

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = compute(*args, **kwargs)
        losses.append(float((result[0] if isinstance(result, tuple) else result).detach()))
        return result

    trainer.compute_loss = noted
    trainer.train()
    figures = align_pairs.figures(losses, watch.marks)
    return {"peer": f"trl {trl.__version__}", "algo": algorithm, "seed": seed, **figures}


class WatchSteps(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(align_pairs.now())


def main() -> None:
    algorithm, seed, folder, updates = sys.argv[1:]
    if algorithm in ("dpo", "reward"):
        print(json.dumps(on_pairs(algorithm, int(seed), Path(folder))))
        return
    run = {"grpo": grpo, "ppo": ppo}[algorithm]
    watch = run(int(seed), Path(folder), int(updates))
    samples = watch.batches * ANSWERS
    line = {
        "peer": f"trl {trl.__version__}",
        "algo": algorithm,
        "seed": int(seed),
        "reached": watch.reached,
        "samples": samples,
        "seconds": round(watch.seconds, 2),
        "samples_s": round(samples / watch.seconds, 2),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
