"""Two and four workers learn what one learns: equal losses, gradients and weights.

The truth is one worker with its whole batch in one forward pass: there a mean over tokens (or
pairs) is just that. Workers and micro-batches get very uneven shares of tokens. Only the order of
summation differs, so the tolerances are those of float32:

    losses and norms    1e-5 of their size
    gradients           1e-4 of their length
    weights             1e-3 of the way that they have gone (Adam divides by small gradients)
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import policy_job
import trainings
from plinth.models.adapters.lora import LoraConfig
from plinth.trainer.checkpoint import trained
from plinth.trainer.data.documents import Document
from plinth.trainer.loop import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import set_up
from plinth.trainer.loop.train import take_step
from plinth.trainer.objectives.pairs import PairOptions
from plinth.trainer.policy.run import optimise_policy
from worker_groups import run_group

STEPS, BATCH, LENGTH = 4, 8, policy_job.LENGTH


def uneven_chats(count):
    """Answers of one word, and some of up to thirty."""
    chance = random.Random(2)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    return [
        Document(
            messages=(
                ("user", f"{number}?"),
                ("assistant", " ".join(chance.choices(words, k=chance.choice((1, 1, 1, 12))))),
            )
        )
        for number in range(count)
    ]


def steps(rank, world, jobs):
    """Some steps of each job; what came of them lies in its folder."""
    for folder, config in jobs:
        run = set_up(config, JobFolder(folder), Group(rank, world))
        start = {name: p.detach().clone() for name, p in trained(run.decoder)}
        share = BATCH // world
        mine = run.sampler.at(rank * share, share).tolist()
        results, gradients = [], {}
        for step in range(STEPS):
            results.append(take_step(run, 1e-3 * (step + 1)))
            if step == 0:
                gradients = {n: p.grad.clone() for n, p in trained(run.decoder)}
        found = {
            "losses": [float(result.loss) for result in results],
            "norms": [float(result.grad_norm) for result in results],
            "tokens": [result.tokens for result in results],
            "weight": run.objective.batch(mine).weight,
            "read": run.objective.batch(mine).tokens,
            "evaluation": dict(run.objective.evaluate(run.decoder, run.group, 4)),
        }
        (folder / f"found-{rank}.json").write_text(json.dumps(found))
        end = {name: p.detach().clone() for name, p in trained(run.decoder)}
        for name, tensors in (("gradients", gradients), ("start", start), ("end", end)):
            save_file(tensors, folder / f"{name}-{rank}.safetensors")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Name → configuration for one worker."""
    folder = tmp_path_factory.mktemp("counts")
    pairs, start, _ = policy_job.made(folder / "policy")
    plain = trainings.dataset(folder / "plain", trainings.texts(60))
    chats = trainings.dataset(folder / "chats", uneven_chats(160))
    base = trainings.config(
        plain,
        init_from=str(start),
        model=None,
        sequence_length=LENGTH,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        steps=STEPS,
        clip_norm=0.0,
    )

    def of(dataset, objective, options=None, **changes):
        fields = {"dataset": str(dataset), "objective": objective, **changes}
        return replace(base, **fields, pairs=None if options is None else asdict(options))

    # A pad of the chats' packs is never learnt: shorter sequences make the packs less even.
    return {
        "clm": of(plain, "clm"),
        "clipped": of(plain, "clm", clip_norm=0.1),
        "sft": of(chats, "sft", sequence_length=40),
        "dpo": of(pairs, "dpo", PairOptions(likelihood_weight=0.5, label_smoothing=0.1)),
        "ipo": of(pairs, "dpo", PairOptions(loss="ipo")),
        "reward": of(pairs, "reward", PairOptions(margin=0.3, centring=0.05)),
        "adapter": of(chats, "sft", sequence_length=40, lora=asdict(LoraConfig(rank=2, alpha=4))),
    }


def done(configs, folder, world, micro):
    jobs = []
    for name, config in configs.items():
        made = replace(config, workers=world, micro_batch_size=micro)
        jobs.append((trainings.job(folder / name, made), made))
    run_group(world, folder, steps, jobs)
    return folder


def length(tensors):
    return float(torch.sqrt(sum((t.double() ** 2).sum() for t in tensors.values())))


def apart(a, b):
    assert a.keys() == b.keys()
    return length({name: a[name].double() - b[name].double() for name in a})


def compare(truth, found, world):
    one = json.loads((truth / "found-0.json").read_text())
    ranks = [json.loads((found / f"found-{rank}.json").read_text()) for rank in range(world)]
    for rank in ranks:
        for name in ("losses", "norms"):
            assert rank[name] == pytest.approx(one[name], rel=1e-5), name
        assert rank["tokens"] == one["tokens"]
        assert rank["evaluation"] == pytest.approx(one["evaluation"], rel=1e-4, abs=1e-6)

    def tensors(folder, name, rank=0):
        return load_file(folder / f"{name}-{rank}.safetensors")

    gradients, ends = tensors(truth, "gradients"), tensors(truth, "end")
    way = apart(ends, tensors(truth, "start"))
    assert way > 0
    for rank in range(world):
        assert apart(tensors(found, "gradients", rank), gradients) <= 1e-4 * length(gradients)
        assert apart(tensors(found, "end", rank), ends) <= 1e-3 * way
        assert apart(tensors(found, "end", rank), tensors(found, "end")) == 0.0
    return ranks


@pytest.fixture(scope="module")
def truth(configs, tmp_path_factory):
    return done(configs, tmp_path_factory.mktemp("truth"), 1, BATCH)


@pytest.mark.parametrize(("world", "micro"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_workers_learn_what_one_learns(configs, truth, world, micro, tmp_path):
    found = done(configs, tmp_path / "found", world, micro)
    for name in configs:
        ranks = compare(truth / name, found / name, world)
        if name == "sft":  # what is to be averaged is really uneven
            assert max(r["weight"] for r in ranks) > 1.3 * min(r["weight"] for r in ranks)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return policy_job.made(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("objective", "normalise"),
    [
        ("grpo", "answers"),
        ("ppo", "tokens"),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (
                ("grpo", "tokens"),
                ("grpo", "constant"),
                ("ppo", "answers"),
                ("ppo", "constant"),
            )
        ),
    ],
)
def test_a_policys_micro_batches_make_no_difference(objective, normalise, policy, tmp_path):
    """A policy has one worker; its answers, of uneven length, come in micro-batches."""
    changes = {"samples": 1} if objective == "ppo" else {}
    made = policy_job.planned(
        *policy,
        objective=objective,
        steps=1,
        policy={"max_new_tokens": 30, "entropy_weight": 0.01, **changes},
    )
    kl = {"kl_in": "loss", "kl_estimator": "k3", "kl_coefficient": 0.1} if not changes else {}
    found = []
    for micro in (16, 5, 1):
        options = {**made.policy, "micro_batch": micro, "normalise": normalise, **kl}
        job = JobFolder(trainings.job(tmp_path / str(micro), replace(made, policy=options)))
        config = replace(made, policy=options)
        assert optimise_policy(config, job, Group()) == "succeeded", job.outcome()
        found.append((job.progress(), load_file(job.model / "model.safetensors")))
    (one, end), start = found[0], load_file(policy[1] / "model.safetensors")
    assert 0 < one.figures["ended"] < 1  # answers are of uneven length
    way = apart(end, {name: start[name] for name in end})
    for progress, weights in found[1:]:
        assert progress.loss == pytest.approx(one.loss, rel=1e-4, abs=1e-6)
        assert progress.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        for name in ("value_loss", "entropy", "kl"):
            assert progress.figures[name] == pytest.approx(one.figures[name], rel=1e-5, abs=1e-6)
        assert apart(weights, end) <= 1e-3 * way
