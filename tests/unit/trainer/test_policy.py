"""PPO, GRPO and RLOO on a model that is small enough to learn in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trainings
from plinth.engine.engine import Engine
from plinth.engine.request import Sampling
from plinth.engine.runner import Runner
from plinth.engine.scheduler import Limits
from plinth.kernels.paged import KvCache
from plinth.models.decoder import Decoder
from plinth.models.rope import Rope, RopeScaling
from plinth.shared.errors import DataLoss, FailedPrecondition, InvalidArgument
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.loop import PolicyState, Update, optimise
from plinth.trainer.policy.model import Actor, RolloutBatch, logprobs
from plinth.trainer.policy.rollouts import EngineSampler, Order, Rollout, check_fresh
from plinth.trainer.policy.update import learn

TARGET = 7
STOP = 1
PROMPTS = [(i % 16, (3 * i) % 16, 5) for i in range(64)]
CONFIG = PolicyConfig(
    algorithm="grpo",
    updates=20,
    prompts=4,
    samples=8,
    max_new_tokens=12,
    learning_rate=1e-2,
    kl_coefficient=0.0,
    micro_batch=32,
    seed=5,
)


def decoder(seed: int = 0) -> Decoder:
    return trainings.decoder(seed, vocab_size=16)


def sampler_of(model: Decoder) -> EngineSampler:
    cache = KvCache(model.states, 128, 16)
    return EngineSampler(Engine(Runner(model, cache), Limits(512, 64, 200, 32)))


def share_of_target(rollouts: Sequence[Rollout]) -> list[float]:
    return [r.response.count(TARGET) / len(r.response) for r in rollouts]


class Trial:
    """A run that can be stopped and gone on with."""

    def __init__(self, config: PolicyConfig, *, stops: frozenset[int] = frozenset()) -> None:
        self.config, self.stops = config, stops
        self.policy = decoder()
        self.actor = Actor(self.policy, value_head=config.has_critic)
        self.optimizer = torch.optim.AdamW(
            self.actor.parameters(), lr=config.learning_rate, weight_decay=0.0
        )
        self.progress = PolicyState()
        self.reference = decoder() if config.kl_coefficient else None

    def run(self, upto: int | None = None, reward=share_of_target) -> list[Update]:
        config = replace(self.config, updates=upto or self.config.updates)
        return list(
            optimise(
                self.actor,
                self.reference,
                sampler_of(self.policy),
                reward,
                PROMPTS,
                config,
                self.optimizer,
                self.progress,
                stop_ids=self.stops,
            )
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.actor.state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "grpo"},
        {"algorithm": "grpo", "by_std": False, "normalise": "constant"},
        {"algorithm": "rloo"},
        {"algorithm": "ppo", "prompts": 32, "samples": 1, "lam": 1.0},
        {
            "algorithm": "ppo",
            "prompts": 32,
            "samples": 1,
            "epochs": 2,
            "minibatches": 2,
            "learning_rate": 5e-3,
        },
    ],
)
def test_it_learns_and_trainer_and_sampler_agree_all_along(change) -> None:
    """Over the whole run: 99.5 % of tokens within 1e-5 of one another, all within 1e-4."""
    updates = Trial(replace(CONFIG, **change)).run()
    assert updates[0].learned.score < 0.2
    assert max(update.learned.score for update in updates) > 0.8
    tokens = sum(update.learned.tokens for update in updates)
    within = sum(update.learned.gap_within * update.learned.tokens for update in updates)
    assert within / tokens >= 0.995
    assert max(update.learned.gap for update in updates) <= 1e-4
    assert len({update.weights_digest for update in updates}) == len(updates)


def test_a_run_that_was_stopped_ends_with_the_same_weights() -> None:
    config = replace(CONFIG, algorithm="ppo", prompts=32, samples=1, epochs=2, minibatches=2)
    whole, parts = Trial(config), Trial(config)
    whole.run(6)
    parts.run(2)
    parts.run(3)
    parts.run(6)
    ours, theirs = whole.weights(), parts.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_forward_pass_or_several_is_the_same_step() -> None:
    """The kept graph, the micro-batches and the separate first look give one gradient."""
    ends = []
    for micro in (32, 8):
        trial = Trial(replace(CONFIG, micro_batch=micro, kl_coefficient=0.1, kl_in="loss"))
        first, second = trial.run(2)
        ends.append((first.learned.grad_norm, second.learned.grad_norm, second.learned.kl))
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_kl_holds_the_policy_back() -> None:
    free = Trial(replace(CONFIG, kl_coefficient=1e-9)).run()
    held = Trial(replace(CONFIG, kl_coefficient=0.5)).run()
    assert held[-1].learned.kl < 0.5 * free[-1].learned.kl
    adaptive = Trial(replace(CONFIG, kl_coefficient=0.05, kl_target=0.5)).run()
    assert adaptive[-1].coefficient > 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"kl_explosion": 2.0, "kl_coefficient": 1e-9},
        {"max_update_kl": 1e-3},
    ],
)
def test_an_explosion_ends_the_run_for_good(change) -> None:
    """Another attempt would go the same way: what ends it is no error that is tried again."""
    with pytest.raises(FailedPrecondition) as caught:
        Trial(replace(CONFIG, **change)).run()
    assert caught.value.reason == "KL_EXPLOSION"


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_rate_of_three_tenths_does_not_go_by_without_a_word(algorithm) -> None:
    batch = {"prompts": 32, "samples": 1} if algorithm == "ppo" else {}
    with pytest.raises(FailedPrecondition, match=r"lower the learning rate \(now 0\.3\)"):
        Trial(replace(CONFIG, algorithm=algorithm, learning_rate=0.3, **batch)).run()
    updates = Trial(replace(CONFIG, algorithm=algorithm, **batch)).run(5)  # as it says
    assert max(update.learned.update_kl for update in updates) < 0.1


def test_an_updates_other_steps_are_dropped_once_it_went_far_enough() -> None:
    config = replace(
        CONFIG, algorithm="ppo", prompts=32, samples=1, epochs=4, minibatches=2, max_update_kl=0.0
    )
    far = [Trial(replace(config, stop_kl=bound)).run(1)[0].learned for bound in (0.0, 0.02)]
    assert far[0].dropped_steps == 0
    assert 0 < far[1].dropped_steps < 8
    assert far[1].update_kl < far[0].update_kl


def test_what_an_update_moved_is_measured_after_its_last_step() -> None:
    """KL(old ‖ new) against the probabilities before and after, of each fourth of 32 answers."""
    trial = Trial(replace(CONFIG, micro_batch=32))
    rollouts = sampler_of(trial.policy).sample(
        [Order(g, PROMPTS[g], 8, seed=g) for g in range(4)], Sampling(1.0, max_tokens=12)
    )
    batch = RolloutBatch.of(rollouts)
    valid_bt = batch.valid_bt
    before = logprobs(trial.policy, rollouts, 1.0, 32)
    scores = share_of_target(rollouts)
    found = learn(
        trial.actor, trial.optimizer, rollouts, scores, None, trial.config, 0.0, torch.Generator()
    )
    ratio = (logprobs(trial.policy, rollouts, 1.0, 32) - before)[::4][valid_bt[::4]]
    assert found.update_kl == pytest.approx(float((ratio.exp() - 1 - ratio).mean()), rel=1e-4)
    assert found.update_kl > 1e-3


def test_one_corrupted_tensor_is_caught_on_the_first_batch() -> None:
    trial = Trial(CONFIG)
    elsewhere = decoder()
    with torch.no_grad():
        elsewhere.model.layers[1].mlp.up_proj.weight[3, 4] += 0.5
    run = optimise(
        trial.actor,
        None,
        sampler_of(elsewhere),
        share_of_target,
        PROMPTS,
        CONFIG,
        trial.optimizer,
        trial.progress,
    )
    before = trial.weights()
    with pytest.raises(DataLoss, match="does not hold the trainer's weights"):
        next(run)
    assert all(torch.equal(before[name], value) for name, value in trial.weights().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named(bad) -> None:
    with pytest.raises(InvalidArgument, match=r"reward of rollout 0\.0\.3 is"):
        Trial(CONFIG).run(
            1, lambda rollouts: [bad if i == 3 else 0.5 for i in range(len(rollouts))]
        )


def test_a_constant_reward_changes_nothing_by_groups() -> None:
    trial = Trial(CONFIG)
    before = trial.weights()
    (update,) = trial.run(1, lambda rollouts: [0.7] * len(rollouts))
    assert update.learned.grad_norm == 0
    assert (update.learned.zero_variance_groups, update.learned.groups) == (4, 4)
    assert all(torch.equal(before[name], value) for name, value in trial.weights().items())


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
@given(rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6))
@settings(max_examples=12)
def test_groups_without_variance_are_counted(algorithm, rewards) -> None:
    """With a critic the whole batch is one group: its rewards are compared through the values."""
    shape = {"prompts": 6, "samples": 1} if algorithm == "ppo" else {"prompts": 3, "samples": 2}
    trial = Trial(replace(CONFIG, algorithm=algorithm, max_new_tokens=2, **shape))
    (update,) = trial.run(1, lambda _: rewards)
    groups = [rewards] if algorithm == "ppo" else [rewards[i : i + 2] for i in (0, 2, 4)]
    assert update.learned.groups == len(groups)
    assert update.learned.zero_variance_groups == sum(len(set(group)) == 1 for group in groups)


def test_the_end_of_an_answer_is_learned_too() -> None:
    """Rewarded for stopping at once, the policy does: its answers are the stop token alone."""
    trial = Trial(replace(CONFIG, updates=25), stops=frozenset({STOP}))
    updates = trial.run(reward=lambda rollouts: [-float(len(r.response)) for r in rollouts])
    assert updates[-1].learned.length < 2
    assert updates[-1].learned.ended > 0.9
    rollouts = sampler_of(trial.policy).sample(
        [Order(0, PROMPTS[0], 4, seed=9)], Sampling(1.0, max_tokens=12, stop_ids=frozenset({STOP}))
    )
    assert all(r.response[-1] == STOP for r in rollouts if r.ended)


def test_cut_off_answers_pay_the_penalty() -> None:
    trial = Trial(replace(CONFIG, updates=25, missing_eos_penalty=1.0), stops=frozenset({STOP}))
    updates = trial.run(reward=lambda rollouts: [0.0] * len(rollouts))
    assert updates[-1].learned.ended > updates[0].learned.ended


def test_log_probabilities_are_the_samplers_at_any_temperature() -> None:
    model = decoder()
    orders = [Order(0, (3, 5, 1), 3, seed=1), Order(1, (2,), 2, seed=2)]
    rollouts = sampler_of(model).sample(orders, Sampling(0.7, max_tokens=9))
    assert [(r.group, r.sample_index) for r in rollouts] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    batch = RolloutBatch.of(rollouts)
    found = logprobs(model, rollouts, 0.7, micro_batch=2)
    torch.testing.assert_close(found[batch.valid_bt], batch.sampler_bt[batch.valid_bt])
    assert (found[~batch.valid_bt] == 0).all()


def test_answers_turn_as_they_did_where_they_were_sampled() -> None:
    """By what they might have been long: some end before the length from which all turns otherwise,
    one is of a prompt that is beyond it, and one could never get there."""
    scaling = RopeScaling("dynamic", factor=4.0, original_context=9)
    model = trainings.decoder(0, vocab_size=16, ropes=(Rope(100.0, scaling=scaling),))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    orders = [
        Order(0, (3, 5, 1), 6, seed=1),
        Order(1, tuple(range(2, 13)), 1, seed=2),
        Order(2, (4,), 1, seed=3),
    ]
    sampling = Sampling(1.0, max_tokens=8, stop_ids=frozenset(range(8)))
    rollouts = sampler_of(model).sample(orders, sampling)
    lengths = [len(rollout.prompt) + len(rollout.response) for rollout in rollouts]
    assert min(lengths[:6]) <= 9 < min(len(r.prompt) + sampling.max_tokens for r in rollouts[:7])
    assert lengths[7] <= 9
    batch = RolloutBatch.of(rollouts)
    found = logprobs(model, rollouts, 1.0, micro_batch=4)
    torch.testing.assert_close(found[batch.valid_bt], batch.sampler_bt[batch.valid_bt])
    short = replace(batch, longest_b=batch.last_b + 1)
    with torch.no_grad():
        other = Actor(model, value_head=False)(short, 1.0).logprobs_bt
    apart = (other - batch.sampler_bt)[batch.valid_bt].abs().max()
    assert apart > 1e-2, "the rule tells nothing here"


def test_stale_and_foreign_rollouts_are_refused() -> None:
    rollouts = sampler_of(decoder()).sample([Order(0, (3,), 1, seed=1)], Sampling(1.0))
    (made,) = rollouts
    check_fresh(rollouts, 0, {made.weights_digest})
    check_fresh(rollouts, 1, {made.weights_digest}, staleness=1)
    with pytest.raises(DataLoss, match="never had"):
        check_fresh(rollouts, 0, {"sha256:other"})
    with pytest.raises(DataLoss, match="at most 0 old"):
        check_fresh(rollouts, 1, {made.weights_digest})


class Scattered(EngineSampler):
    """Groups arrive last first; what is started is sampled at once, by the weights of then."""

    def __init__(self, model: Decoder) -> None:
        super().__init__(sampler_of(model)._engine)
        self.sampled: list[list[Rollout]] = []
        self.calls: list[str] = []

    def start(self, orders: Sequence[Order], sampling: Sampling) -> None:
        self.calls.append("start")
        super().start(orders, sampling)
        self.sampled = list(super().arrivals())

    def arrivals(self) -> Iterator[list[Rollout]]:
        for group in reversed(self.sampled):
            self.calls.append(f"group {group[0].group}")
            yield group

    def renew(self, revision: int) -> str:
        self.calls.append(f"renew {revision}")
        return super().renew(revision)


def optimised(trial: Trial, sampler: Scattered, **options: Any) -> list[Update]:
    return list(
        optimise(
            trial.actor,
            None,
            sampler,
            options.pop("reward", share_of_target),
            PROMPTS,
            trial.config,
            trial.optimizer,
            trial.progress,
            **options,
        )
    )


def test_groups_are_heard_of_as_they_come_and_learned_from_in_order() -> None:
    trial, calls = Trial(replace(CONFIG, updates=2)), []
    sampler = Scattered(trial.policy)

    def reward(rollouts: Sequence[Rollout]) -> list[float]:
        calls.append([rollout.group for rollout in rollouts[::8]])
        return share_of_target(rollouts)

    optimised(
        trial,
        sampler,
        reward=reward,
        heard=lambda group: sampler.calls.append(f"heard {len(group)}"),
    )
    assert calls == [[0, 1, 2, 3]] * 2
    arrived = [
        "group 3",
        "heard 8",
        "group 2",
        "heard 8",
        "group 1",
        "heard 8",
        "group 0",
        "heard 8",
    ]
    one = ["start", *arrived]
    assert sampler.calls == ["renew 0", *one, "renew 1", *one, "renew 2"]
    plain = Trial(replace(CONFIG, updates=2))
    plain.run()
    assert all(torch.equal(trial.weights()[n], value) for n, value in plain.weights().items())


def test_one_step_ahead_it_learns_from_answers_that_are_one_update_old() -> None:
    trial = Trial(replace(CONFIG, updates=30, rollouts="shards", ahead=1, learning_rate=5e-3))
    sampler, ages = Scattered(trial.policy), []

    def reward(rollouts: Sequence[Rollout]) -> list[float]:
        ages.append(trial.progress.update - rollouts[0].revision)
        return share_of_target(rollouts)

    updates = optimised(trial, sampler, reward=reward)
    assert ages == [0] + [1] * 29
    # Asked for before the update, and for no update that does not come.
    moves = [call for call in sampler.calls if not call.startswith("group")]
    assert moves[:5] == ["renew 0", "start", "start", "renew 1", "start"]
    assert moves.count("start") == 30
    assert max(update.learned.score for update in updates) > 0.8
    assert updates[0].learned.importance == 1
    assert updates[0].learned.gap <= 1e-4 < updates[1].learned.gap
    for update in updates[1:]:
        assert 0.5 < update.learned.importance < 1.5


def test_importance_weights_are_of_this_policy_to_the_samplers() -> None:
    """Against the gradient that the definition gives, token by token."""
    old, new = decoder(), decoder(1)
    rollouts = sampler_of(old).sample(
        [Order(g, (3, g), 2, seed=g) for g in range(2)], Sampling(1.0, max_tokens=6)
    )
    config = replace(CONFIG, prompts=2, samples=2, clip_norm=0.0, importance_cap=1.25)
    actor = Actor(new, value_head=False)
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.0)
    scores = [0.0, 1.0, 0.5, 0.25]
    batch = RolloutBatch.of(rollouts)
    reference_bt = torch.where(batch.valid_bt, batch.sampler_bt - 0.5, 0.0)
    told = learn(
        actor, optimizer, rollouts, scores, reference_bt, config, 0.0, torch.Generator(), stale=True
    )
    found = {name: p.grad.clone() for name, p in new.named_parameters() if p.grad is not None}
    new.zero_grad()
    now_bt = actor(batch, 1.0).logprobs_bt
    weights_bt = (now_bt.detach() - batch.sampler_bt).exp().clamp(max=1.25)
    kl_bt = (weights_bt * (now_bt.detach() - reference_bt))[batch.valid_bt]
    assert told.kl == pytest.approx(float(kl_bt.sum()) / len(rollouts), rel=1e-4)
    groups = torch.tensor(scores).view(2, 2)
    advantages_b = (
        (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    ).view(-1)
    loss = (
        -(weights_bt * advantages_b[:, None] * now_bt)[batch.valid_bt].sum() / batch.valid_bt.sum()
    )
    loss.backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, new.get_parameter(name).grad, rtol=1e-3, atol=1e-6)
    with pytest.raises(DataLoss):
        learn(actor, optimizer, rollouts, scores, None, config, 0.0, torch.Generator())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"algorithm": "a2c"}, "algorithm"),
        ({"samples": 1}, "samples"),
        ({"temperature": 0.0}, "temperature"),
        ({"minibatches": 5}, "minibatches"),
        ({"kl_estimator": "k9"}, "kl_estimator"),
        ({"max_gap": float("nan")}, "max_gap"),
        ({"kl_coefficient": float("nan")}, "kl_coefficient"),
        ({"clip_low": -0.2}, "clip_low"),
        ({"lam": 1.5}, "lam"),
        ({"ahead": 2}, "ahead"),
        ({"ahead": 1}, "ahead"),
        ({"importance_cap": 0.5}, "importance_cap"),
    ],
)
def test_a_configuration_that_cannot_be_right_names_its_field(change, field) -> None:
    with pytest.raises(InvalidArgument) as caught:
        replace(CONFIG, **change)
    assert caught.value.field == field
