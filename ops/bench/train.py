"""Training steps: Plinth's loop against a hand-written one and against transformers.

One JSON line per result, the same model, batch, optimiser and threads for all, in one process and
in turns (so that a machine that slows down slows all). `ratio` is Plinth's rate over the other's.

    python ops/bench/train.py [--rounds 5] [--steps 4] [--device cpu] [--model quickstart|smollm2]
                              [--precision fp32|bf16] [--batch 16] [--length 1024]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth.models.config import ModelConfig
from plinth.models.hf import config as hf_config
from plinth.trainer.data.shards import DatasetInfo, SplitWriter, write_info
from plinth.trainer.loop import Group, TrainConfig
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import BETAS, EPS, set_up
from plinth.trainer.loop.train import take_step

SHAPES: dict[str, dict[str, Any]] = {
    # The quickstart's model; SmolLM2-135M's shape with random weights.
    "quickstart": {
        "layers": 4, "hidden": 192, "heads": 6, "kv_heads": 6, "head_dim": 32,
        "intermediate": 512, "vocab": 2048, "length": 256, "batch": 16,
    },
    "smollm2": {
        "layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64,
        "intermediate": 1536, "vocab": 49152, "length": 256, "batch": 2,
    },
}  # fmt: skip
LEARNING_RATE, CLIP, DECAY = 1e-4, 1.0, 0.1


class MinimalBlock(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        width, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.n1, self.n2 = nn.RMSNorm(c.hidden, 1e-5), nn.RMSNorm(c.hidden, 1e-5)
        self.q = nn.Linear(c.hidden, width, bias=False)
        self.k = nn.Linear(c.hidden, kv, bias=False)
        self.v = nn.Linear(c.hidden, kv, bias=False)
        self.o = nn.Linear(width, c.hidden, bias=False)
        self.gate = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.up = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.down = nn.Linear(c.intermediate, c.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, (b, t, _) = self.c, x.shape

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(b, t, count, c.head_dim).transpose(1, 2)

        def rotate(y: Tensor) -> Tensor:
            low, high = y.chunk(2, -1)
            return y * cos + torch.cat((-high, low), -1) * sin

        h = self.n1(x)
        q, k = rotate(heads(self.q(h), c.heads)), rotate(heads(self.k(h), c.kv_heads))
        v = heads(self.v(h), c.kv_heads)
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=c.kv_heads != c.heads
        )
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, -1))
        h = self.n2(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class MinimalLlama(nn.Module):
    """The same model as anybody would write it: modules, SDPA, rotary halves, a tied head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(c.vocab_size, c.hidden)
        self.blocks = nn.ModuleList(MinimalBlock(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, 1e-5)
        steps = torch.arange(0, c.head_dim, 2) / c.head_dim
        angles = torch.outer(torch.arange(c.context), c.ropes[0].theta ** -steps)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), -1), persistent=False)
        self.register_buffer("sin", torch.cat((angles.sin(), angles.sin()), -1), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids_bt: Tensor) -> Tensor:
        t = ids_bt.shape[1]
        x = self.embed(ids_bt)
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return F.linear(self.norm(x), self.embed.weight)


def minimal_loop(config: TrainConfig, shape: ModelConfig, tokens: np.ndarray) -> Callable[[], None]:
    """A hand-written training step: whole batch at once, fused AdamW, clipping."""
    model = MinimalLlama(shape).to(config.device)
    return _plain_step(model, model, config, tokens)


def transformers_loop(
    config: TrainConfig, shape: ModelConfig, tokens: np.ndarray
) -> Callable[[], None]:
    """`LlamaForCausalLM` in the same plain loop."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hf = hf_config.to_hf(shape)
    hf.pop("architectures")
    model = LlamaForCausalLM(LlamaConfig(**hf, attn_implementation="sdpa")).to(config.device)

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(ids, use_cache=False).logits
        return found

    return _plain_step(model, logits, config, tokens)


def _plain_step(
    model: nn.Module, logits: Callable[[Tensor], Tensor], config: TrainConfig, tokens: np.ndarray
) -> Callable[[], None]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def step() -> None:
        t = config.sequence_length
        starts = rng.integers(0, len(tokens) - t - 1, config.batch_size)
        rows = np.stack([tokens[s : s + t + 1].astype(np.int64) for s in starts])
        batch = torch.from_numpy(rows).to(config.device)
        with torch.autocast(
            config.device.split(":")[0], torch.bfloat16, enabled=config.precision == "bf16"
        ):
            out = logits(batch[:, :-1])
        loss = F.cross_entropy(out.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        loss.item()

    return step


def plinth_loop(config: TrainConfig, folder: Path) -> Callable[[], None]:
    run = set_up(config, JobFolder(folder), Group(device=config.device))

    def step() -> None:
        take_step(run, LEARNING_RATE)

    return step


def make_dataset(folder: Path, vocab: int, tokens: np.ndarray) -> None:
    """Random ids in the trainer's own format."""
    splits = {}
    for split in ("train", "validation"):
        writer = SplitWriter(folder, split, "<u2", masked=False, limit=1 << 30)
        writer.add(tokens.tolist(), len(tokens))
        writer.close()
        splits[split] = writer.info
    write_info(folder, DatasetInfo("clm", "none@1", "", vocab, 0, 0, "<u2", splits))


def seconds_per_step(step: Callable[[], None], steps: int, device: str) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def instruction_set() -> str:
    return torch.backends.cpu.get_cpu_capability()


def measure(name: str, arguments: argparse.Namespace) -> None:
    s = {**SHAPES[name], **{k: v for k in ("batch", "length") if (v := getattr(arguments, k))}}
    tokens = np.random.default_rng(1).integers(0, s["vocab"], 200_000).astype("<u2")
    shape = {k: s[k] for k in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate")}
    fields = {"family": "llama", "context": s["length"], **shape}
    model = ModelConfig(**fields, vocab_size=s["vocab"])
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        make_dataset(data, s["vocab"], tokens)
        config = TrainConfig(
            objective="clm", dataset=str(data), init_from="", model=fields,
            sequence_length=s["length"], batch_size=s["batch"], micro_batch_size=s["batch"],
            steps=10**6, max_seconds=0, learning_rate=LEARNING_RATE, weight_decay=DECAY,
            clip_norm=CLIP, precision=arguments.precision, threads=torch.get_num_threads(),
            device=arguments.device,
        )  # fmt: skip
        if arguments.micro:
            config = replace(config, micro_batch_size=arguments.micro)
        steps = {
            "plinth": plinth_loop(config, Path(scratch)),
            "minimal": minimal_loop(config, model, tokens),
            "transformers": transformers_loop(config, model, tokens),
        }
        for step in steps.values():
            step()
            step()
        times: dict[str, list[float]] = {who: [] for who in steps}
        for _ in range(arguments.rounds):
            for who, step in steps.items():
                times[who].append(seconds_per_step(step, arguments.steps, arguments.device))
    ours = median(times["plinth"])
    for who, taken in times.items():
        line = {
            "bench": "train",
            "model": name,
            "who": who,
            "tokens_per_second": round(s["batch"] * s["length"] / median(taken), 1),
            "step_seconds": round(median(taken), 5),
            "ratio": round(median(taken) / ours, 3),
            "ratio_paired": round(
                median(t / o for t, o in zip(taken, times["plinth"], strict=True)), 3
            ),
            "rounds": arguments.rounds,
            "batch": s["batch"],
            "length": s["length"],
            "micro_batch": config.micro_batch_size,
            "threads": torch.get_num_threads(),
            "device": arguments.device,
            "precision": arguments.precision,
            "cpu": instruction_set(),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--micro", type=int, default=0, help="Plinth's micro-batch; 0: the batch")
    parser.add_argument("--batch", type=int, default=0, help="sequences; 0: the shape's")
    parser.add_argument("--length", type=int, default=0, help="tokens of each; 0: the shape's")
    parser.add_argument("--model", choices=sorted(SHAPES), action="append")
    arguments = parser.parse_args()
    for name in arguments.model or SHAPES:
        measure(name, arguments)


if __name__ == "__main__":
    main()
