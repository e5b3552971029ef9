"""One run of a peer for `align.py`, inside the peer's own environment: GRPO by TRL.

python align_trl.py ALGORITHM SEED MODEL_FOLDER UPDATES → one JSON line
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

VOCABULARY, PROMPT, RESPONSE, TARGET = 32, 8, 64, 7
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
    return [" ".join(f"w{i}" for i in row) for row in made.tolist()]


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


def main() -> None:
    algorithm, seed, folder, updates = sys.argv[1:]
    if algorithm != "grpo":
        raise SystemExit(f"{algorithm}: not measured against TRL yet")
    watch = grpo(int(seed), Path(folder), int(updates))
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
