"""Learning from rewards: this project and its peers on one model, task, seeds and threads.

Prints one JSON line per (algorithm, peer, seed). The peers run in environments of their own, which
`ops/bench/peers.sh` makes; each run is a process of its own, and the peers take turns by seed, each
the first in every other turn.

    python ops/bench/align.py [--algos grpo,ppo,dpo,reward,real] [--peers self,trl]
                              [--seeds 0,1,2] [--repeats 1] [--updates 40] [--device cpu]
                              [--real KEY=VALUE …]

real (`align_real.py`): SmolLM2 learns to keep instructions, from sampling to the last judgement;
`--real` changes a number of its spec.

DPO and reward models (`align_pairs.py`): 8 random pairs a batch, 128 tokens a side, fp32; `pairs_s`
counts the steps after the first two, with DPO's reference computed before. Both peers' losses are
printed and must agree, or the exit status is 1.

GRPO and PPO. The task: prompts of 8 random tokens, exactly 64 response tokens at temperature 1,
vocabulary 32; the reward is the share of one target token. The model: a Llama of 10M random
parameters. A batch is 16 answers (GRPO: 2 prompts × 8), the learning rate 3e-4. `samples` and
`seconds` are what it took to reach a mean reward of 0.9; `reached` is false where it did not within
--updates; `update_s` is the median update, sampling included. `generation_tokens_s` counts the
sampling alone; `loop_tokens_s` is a hand-written loop over transformers with a KV cache, in the
same process. `--device` is ours alone. TRL's PPO is that of 1.12, the last that has one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import align_pairs
import align_real
import torch

PEERS = Path(__file__).with_name("align_trl.py")
REAL_PEERS = Path(__file__).with_name("align_real_trl.py")
ENVIRONMENTS = Path(__file__).parents[2] / ".bench"
VOCABULARY, PROMPT, RESPONSE, TARGET = 32, 8, 64, 7
ON_PAIRS = ("dpo", "reward")
ENVIRONMENT = {"ppo": "trl-ppo"}  # of the peer, where it is not "trl"
GOAL, ANSWERS, GROUP, LEARNING_RATE = 0.9, 16, 8, 3e-4
SHAPE = {
    "layers": 8,
    "hidden": 320,
    "heads": 8,
    "kv_heads": 8,
    "head_dim": 40,
    "intermediate": 864,
    "context": 128,
}


def main() -> None:
    """Measure what was asked for, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algos", default="grpo,ppo")
    parser.add_argument("--peers", default="self,trl")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--repeats", type=int, default=1, help="turns of all seeds")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="of our GRPO and PPO")
    parser.add_argument("--real", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # algorithm, seed, folder: a child's work
    options = parser.parse_args()
    if options.one:
        algorithm, seed, folder = options.one.split(",")
        if algorithm in ON_PAIRS:
            line = align_pairs.run_self(algorithm, int(seed), Path(folder))
        elif algorithm == "real":
            line = align_real.run_self(int(seed), Path(folder))
        else:
            line = run_self(algorithm, int(seed), Path(folder), options.updates, options.device)
        print(json.dumps(line))
        return
    unequal = False
    for algorithm in options.algos.split(","):
        checks = []
        for turn, seed in enumerate(options.seeds.split(",") * options.repeats):
            with tempfile.TemporaryDirectory() as scratch:
                if algorithm == "real":
                    real(Path(scratch), seed, options)
                    continue
                folder = make_model(Path(scratch) / "model", int(seed))
                if algorithm in ON_PAIRS:
                    align_pairs.make_pairs(folder, algorithm, int(seed))
                by_peer, peers = {}, options.peers.split(",")
                for peer in peers if turn % 2 == 0 else peers[::-1]:
                    by_peer[peer] = child(peer, algorithm, seed, folder, options)
                    print(json.dumps({"bench": "align", **by_peer[peer]}), flush=True)
                if (check := align_pairs.compared([by_peer[peer] for peer in peers])) is not None:
                    checks.append(check)
                    print(json.dumps({"bench": "align", **check}), flush=True)
                    unequal = unequal or not check["equal"]
        if checks:
            check = align_pairs.median_ratio(algorithm, checks)
            print(json.dumps({"bench": "align", **check}), flush=True)
    sys.exit(1 if unequal else 0)


def real(folder: Path, seed: str, options: argparse.Namespace) -> None:
    """A line for each peer, and whether PEFT answers with our adapter as we do."""
    peers = options.peers.split(",")
    numbers = {key: json.loads(value) for key, value in (one.split("=") for one in options.real)}
    align_real.make_task(folder, numbers)
    lines = []
    for peer in peers:
        line = child(peer, "real", seed, folder, options)
        lines.append(line if "error" in line else align_real.judged(line, folder))
        print(json.dumps({"bench": "align", **lines[-1], **numbers}), flush=True)
    if "self" in peers:
        print(
            json.dumps({"bench": "align", **child("peft", "real", seed, folder, options)}),
            flush=True,
        )
    if len(peers) == 2 and all("seconds" in line for line in lines):
        ratio = round(lines[1]["seconds"] / lines[0]["seconds"], 3)
        print(json.dumps({"bench": "align", "check": "time", "algo": "real", "ratio": ratio}))


def child(
    peer: str, algorithm: str, seed: str, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One run in a process of its own; its last line of output."""
    if peer == "self":
        command = [sys.executable, __file__, "--one", f"{algorithm},{seed},{folder}"]
        command += ["--updates", str(options.updates), "--device", options.device]
    else:
        python = ENVIRONMENTS / ENVIRONMENT.get(algorithm, "trl") / "bin" / "python"
        if not python.exists():
            return {"peer": peer, "algo": algorithm, "error": "run ops/bench/peers.sh first"}
        command = [str(python), str(PEERS), algorithm, seed, str(folder), str(options.updates)]
        if algorithm == "real":
            command = [
                str(python),
                str(REAL_PEERS),
                "peft" if peer == "peft" else seed,
                str(folder),
            ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"peer": peer, "algo": algorithm, "seed": int(seed), "error": done.stderr[-400:]}
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return line


def make_model(folder: Path, seed: int) -> Path:
    """The same random checkpoint for everybody."""
    from plinth.models.config import ModelConfig
    from plinth.models.decoder import Decoder
    from plinth.models.weights import save_decoder

    decoder = Decoder(ModelConfig(family="llama", vocab_size=VOCABULARY, **_shape()))
    decoder.init_weights(seed)
    save_decoder(decoder, folder)
    return folder


def _shape() -> dict[str, Any]:
    return {**SHAPE, "tie_embeddings": True, "attention_bias": False, "mlp_bias": False}


def prompts_of(seed: int) -> list[tuple[int, ...]]:
    """1,000 prompts; the peers make the same ones."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, VOCABULARY, (1000, PROMPT), generator=generator)
    return [tuple(row) for row in made.tolist()]


def run_self(algorithm: str, seed: int, folder: Path, updates: int, device: str) -> dict[str, Any]:
    """Until the goal is reached, or `updates` have been made."""
    from plinth.engine.engine import Engine
    from plinth.engine.runner import Runner
    from plinth.engine.scheduler import Limits
    from plinth.kernels.library import instruction_set
    from plinth.kernels.paged import KvCache
    from plinth.models.weights import load_decoder
    from plinth.trainer.policy.config import PolicyConfig
    from plinth.trainer.policy.loop import PolicyState, optimise
    from plinth.trainer.policy.model import Actor
    from plinth.trainer.policy.rollouts import EngineSampler

    decoder = load_decoder(folder, device=device)
    cache = KvCache(decoder.states, 128, 16, device=device)
    engine = Engine(Runner(decoder, cache), Limits(512, 64, 64, decoder.config.context))
    config = PolicyConfig(
        algorithm=algorithm,
        updates=updates,
        prompts=ANSWERS if algorithm == "ppo" else ANSWERS // GROUP,
        samples=1 if algorithm == "ppo" else GROUP,
        max_new_tokens=RESPONSE,
        learning_rate=LEARNING_RATE,
        kl_coefficient=0.0,
        lam=1.0,
        seed=seed,
    )
    actor = Actor(decoder, value_head=config.has_critic).to(device)
    optimizer = torch.optim.AdamW(
        actor.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    loop_rate = hand_written_loop(folder, device)
    shares: dict[str, float] = {}
    gap, within, tokens, reached = 0.0, 0.0, 0, False
    updates_s = []
    began = time.perf_counter()
    run = optimise(
        actor,
        None,
        EngineSampler(engine),
        lambda rollouts: [r.response.count(TARGET) / len(r.response) for r in rollouts],
        prompts_of(seed),
        config,
        optimizer,
        PolicyState(),
    )
    for update in run:
        updates_s.append(sum(update.seconds.values()))
        for name, seconds in update.seconds.items():
            shares[name] = shares.get(name, 0.0) + seconds
        gap = max(gap, update.learned.gap)
        within += update.learned.gap_within * update.learned.tokens
        tokens += update.learned.tokens
        if reached := update.learned.score >= GOAL:
            break
    seconds = time.perf_counter() - began
    return {
        "peer": "self",
        "algo": algorithm,
        "seed": seed,
        "reached": reached,
        "samples": tokens // RESPONSE,
        "seconds": round(seconds, 2),
        "samples_s": round(tokens / RESPONSE / seconds, 2),
        "update_s": round(median(updates_s), 4),
        "generation_tokens_s": round(tokens / shares["sample"], 1),
        "loop_tokens_s": round(loop_rate, 1),
        "shares": {name: round(spent / seconds, 3) for name, spent in shares.items()},
        "gap": gap,
        "gap_within": within / tokens,
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu": instruction_set(),
    }


def hand_written_loop(folder: Path, device: str, rounds: int = 3) -> float:
    """Tokens per second of the least that one would write over transformers, at batch 16."""
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    prompt_bt = torch.tensor(prompts_of(0)[:ANSWERS], device=device)
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        with torch.no_grad():
            ids_bt, cache = prompt_bt, DynamicCache(config=model.config)
            for _ in range(RESPONSE):
                logits = model(ids_bt, past_key_values=cache, use_cache=True).logits[:, -1]
                ids_bt = torch.multinomial(logits.softmax(-1), 1)
            ids_bt.tolist()  # waits for the device
        rates.append(ANSWERS * RESPONSE / (time.perf_counter() - began))
    return sorted(rates)[rounds // 2]


if __name__ == "__main__":
    main()
