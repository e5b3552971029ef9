"""`align_real.py`'s work in transformers, PEFT and TRL, inside the peer's own environment.

python align_real_trl.py SEED FOLDER → one JSON line
python align_real_trl.py peft FOLDER → whether PEFT opens our adapter and answers as we did
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import trl
from align_real import pairs_of, part, raw_line, read_task
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = 48  # sequences of one call of `generate`; more gained nothing
Row = dict[str, Any]


class Peer:
    """A model and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt(self, text: str) -> str:
        chat = [{"role": "user", "content": text}]
        made: str = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        return made

    @torch.no_grad()
    def answers(
        self, prompts: Sequence[str], heat: float, most: int
    ) -> list[tuple[list[int], float]]:
        """Sampled ids of each, the end token included, and their mean log-probability."""
        said = []
        for low in range(0, len(prompts), ROWS):
            batch = self.tokenizer(
                list(prompts[low : low + ROWS]),
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            )
            out = self.model.generate(
                **batch,
                max_new_tokens=most,
                do_sample=heat > 0,
                temperature=heat or None,
                top_k=0,
                top_p=1.0,
                pad_token_id=self.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
            new_bt = out.sequences[:, batch["input_ids"].shape[1] :]
            columns = [
                (logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)).tolist()
                for logits, ids in zip(out.logits, new_bt.t(), strict=True)
            ]
            for ids, logprobs in zip(new_bt.tolist(), zip(*columns, strict=True), strict=True):
                kept = self._cut(ids)
                said.append((kept, fmean(logprobs[: len(kept)])))
        return said

    def _cut(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def text(self, ids: list[int]) -> str:
        made: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return made

    @torch.no_grad()
    def means(self, prompts: Sequence[str], answers: Sequence[list[int]]) -> list[float]:
        """Mean log-probability per token of each answer."""
        means = []
        for low in range(0, len(prompts), ROWS // 4):
            rows = []
            for text, answer in zip(prompts[low : low + ROWS // 4], answers[low:], strict=False):
                rows.append((self.tokenizer(text, add_special_tokens=False)["input_ids"], answer))
            longest = max(len(prompt) + len(answer) for prompt, answer in rows)
            ids_bt = torch.tensor([p + a + [0] * (longest - len(p) - len(a)) for p, a in rows])
            logprobs = self.model(ids_bt).logits[:, :-1].log_softmax(-1)
            found_bt = logprobs.gather(2, ids_bt[:, 1:, None])[..., 0]
            for row, (prompt, answer) in enumerate(rows):
                means.append(float(found_bt[row, len(prompt) - 1 :][: len(answer)].mean()))
        return means


def run(seed: int, folder: Path) -> Row:
    """All four parts."""
    numbers, train, held_out = read_task(folder)
    torch.manual_seed(seed)
    peer = Peer(folder / "model")
    shares: dict[str, float] = {}
    count, most = numbers["samples"], numbers["new_tokens"]
    with part("sample", shares):
        asked = [peer.prompt(row["prompt"]) for row in train for _ in range(count)]
        answers = peer.answers(asked, numbers["temperature"], most)
        flat = [(peer.text(ids), logprob) for ids, logprob in answers]
        said = [flat[i : i + count] for i in range(0, len(flat), count)]
        pairs = pairs_of(train, said, numbers["ties"])
    with part("judge", shares):
        asked = [peer.prompt(row["prompt"]) for row in held_out]
        said_before = peer.answers(asked, numbers["judged_at"], most)
        sides = {"before": [ids for ids, _ in said_before]}
        logprobs = {"before": [logprob for _, logprob in said_before]}
    with part("train", shares):
        trained = _dpo(seed, folder, numbers, pairs, peer)
    with part("judge", shares):
        peer.model = trained.eval()
        sides["after"] = [ids for ids, _ in peer.answers(asked, numbers["judged_at"], most)]
        with trained.disable_adapter():
            logprobs["after"] = peer.means(asked, sides["after"])
    texts = {side: [peer.text(ids) for ids in answers] for side, answers in sides.items()}
    line = raw_line(texts, logprobs, shares, len(pairs))
    return {"peer": f"trl {trl.__version__}", "algo": "real", "seed": seed, **line}


def _dpo(seed: int, folder: Path, numbers: Row, pairs: Sequence[Row], peer: Peer) -> Any:
    steps = numbers["steps"]
    config = trl.DPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=numbers["batch_size"],
        max_length=numbers["sequence_length"],
        max_steps=steps,
        learning_rate=numbers["learning_rate"],
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=max(1, round(0.02 * steps)),
        lr_scheduler_kwargs={"num_decay_steps": round(0.4 * steps)},
        beta=numbers["beta"],
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, numbers["likelihood_weight"]],
        precompute_ref_log_probs=True,
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        seed=seed,
        use_cpu=True,
        bf16=numbers["precision"] == "bf16",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    rows = [
        {
            "prompt": peer.prompt(pair["prompt"]),
            **{side: pair[side] + peer.tokenizer.eos_token for side in ("chosen", "rejected")},
        }
        for pair in pairs
    ]
    lora = LoraConfig(
        r=numbers["rank"],
        lora_alpha=numbers["alpha"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = trl.DPOTrainer(
        model=peer.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=peer.tokenizer,
        peft_config=lora,
    )
    trainer.train()
    return trainer.model


def opened_by_peft(folder: Path) -> Row:
    """Greedy answers with our adapter on the model, merged as a server would have it."""
    (adapter,) = folder.glob("job-*/adapter")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    ours = json.loads((folder / "greedy.json").read_text())
    same = 0
    for prompt, answer in ours:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=48,
                do_sample=False,
                pad_token_id=0,
            )
        same += out[0, len(prompt) :].tolist() == answer
    return {"check": "peft", "algo": "real", "answers": len(ours), "same": same}


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(opened_by_peft(where) if what == "peft" else run(int(what), where)))
