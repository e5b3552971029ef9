"""The best of several answers, by the official client: likelihood, rewards and votes, counted anew
here from answers that are known."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import torch
import transformers

from gateway_stages import EOS, Said, Shard, Stack, running_stack, until
from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.reward.service import build as build_reward
from plinth.shared.connection import connect
from plinth.shared.stage import RunningStage, StageContext, run_stage
from rewards import reward_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = [{"role": "user", "content": "3 + 4?"}]
PATTERN = r"answer is (-?\d+)"
# The longest is the likeliest per token, and the least likely as a whole.
ANSWERS = [
    Said.evenly("I think the answer is 8.", -0.5),
    Said.evenly("The answer is 5; no, the answer is 7, since four and three are seven.", -0.2),
    Said.evenly("Who knows, really?", -0.9),
    Said.evenly("answer is 8", -0.75),
    Said.evenly("the answer is 7", -0.3),
]
SAID = ["8", "7", None, "8", "7"]
MEANS = [said.logprobs[0] for said in ANSWERS]
TOKENS = sum(len(said.logprobs) for said in ANSWERS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("best-of")
    shard = Shard(says=ANSWERS)
    async with running_stack(folder, redis_server, first=shard, patience_s=0.5) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=stack.key, base_url=f"{stack.url}/v1", max_retries=0
    ) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def judge(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """A reward stage, with a reward model "judge" on the store."""
    folder = reward_model(tmp_path_factory.mktemp("made") / "judge")
    context = await StageContext.open(stack.settings, stage="reward")
    await asyncio.to_thread(context.store.publish, "judge", "reward", folder)
    await asyncio.to_thread(context.store.publish, "chat", "model", folder)
    running: RunningStage = await run_stage(context, build_reward(context))
    yield folder
    await running.stop(10)
    await context.close()


def truth(judge: Path, prompt: str, cut_to: int | None = None) -> list[float]:
    """Each answer's reward by transformers, read at the token that ends its turn; of one that is
    cut, at the last that there is."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(judge)
    end = [EOS] if cut_to is None else []
    with torch.no_grad():
        return [
            float(model(torch.tensor([[*text.encode(), *end]])).logits[0, 0])
            for text in (f"{prompt}<assistant>{said.text[:cut_to]}\n" for said in ANSWERS)
        ]


async def ask(client: openai.AsyncOpenAI, k: int = 5, n: int = 1, **select: Any) -> Any:
    extra = {"best_of": k, **({"select": select} if select else {})}
    return await client.chat.completions.create(
        model="chat", messages=ASK, n=n, seed=1, extra_body=extra
    )


def samples(answer: Any) -> list[int]:
    """Which of the answers came back, after a look that it is them."""
    found = [choice.plinth["sample"] for choice in answer.choices]
    assert [c.message.content for c in answer.choices] == [ANSWERS[i].text for i in found]
    assert [choice.index for choice in answer.choices] == list(range(len(found)))
    return found


async def refused(
    call: Any, status: int, code: str, param: str | None, words: str = ""
) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await call
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param), error
    assert words in error.message
    return error


async def test_the_likeliest_per_token_come_first(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, n=3)
    wanted = sorted(range(5), key=lambda i: -MEANS[i])
    assert samples(answer) == wanted[:3]
    notes = [choice.plinth for choice in answer.choices]
    assert [note["score"] for note in notes] == pytest.approx([MEANS[i] for i in wanted[:3]])
    assert {note["by"] for note in notes} == {"likelihood"}
    assert samples(await ask(client, n=5)) == wanted
    assert samples(await ask(client, by="likelihood")) == wanted[:1]


async def test_usage_counts_all_that_was_made(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client)
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.prompt_tokens == len("<user>3 + 4?\n<assistant>")


async def test_completions_have_it_for_each_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="chat", prompt=["a", "b"], best_of=4, n=2, max_tokens=100, logprobs=0, seed=1
    )
    best = sorted(range(4), key=lambda i: -MEANS[i])[:2]
    assert [choice.text for choice in answer.choices] == [ANSWERS[i].text for i in best * 2]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.plinth["sample"] for choice in answer.choices] == best * 2  # type: ignore[attr-defined]
    for choice, i in zip(answer.choices, best * 2, strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(list(ANSWERS[i].logprobs))
        assert choice.logprobs.text_offset == list(range(len(ANSWERS[i].text)))


async def test_what_comes_behind_a_stop_string_does_not_count(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    """A shard is ahead of the gateway, and how far depends on the clock."""
    better = Said("good END" + "." * 400, (-0.4,) * 8 + (-30.0,) * 400)
    worse = Said("poor END" + "." * 400, (-0.5,) * 8 + (-0.01,) * 400)
    stack.shard.says = [worse, better]
    try:
        for _ in range(5):
            answer = await client.chat.completions.create(
                model="chat", messages=ASK, seed=1, stop=["END"], extra_body={"best_of": 2}
            )
            assert answer.choices[0].message.content == "good "
            assert answer.choices[0].plinth["score"] == pytest.approx(-0.4)  # type: ignore[attr-defined]
    finally:
        stack.shard.says = ANSWERS


async def test_rules_rank(client: openai.AsyncOpenAI, judge: Path) -> None:
    rules = [
        {"rule": {"kind": "contains", "phrases": ["7"]}},
        {"rule": {"kind": "max_words", "n": 4}, "weight": 0.5},
    ]
    answer = await ask(client, n=5, by="reward", rules=rules)
    seven = [float("7" in said.text) for said in ANSWERS]
    brief = [float(len(said.text.split()) <= 4) for said in ANSWERS]
    worth = [a + 0.5 * b for a, b in zip(seven, brief, strict=True)]
    order = sorted(range(5), key=lambda i: (-worth[i], i))
    assert samples(answer) == order
    for choice, i in zip(answer.choices, order, strict=True):
        assert choice.plinth["score"] == worth[i]
        assert choice.plinth["parts"] == {"rules.0": seven[i], "rules.1": brief[i]}
        assert set(choice.plinth["reasons"]) == {
            f"rules.{number}" for number, good in enumerate((seven[i], brief[i])) if not good
        }


async def test_a_reward_model_ranks(client: openai.AsyncOpenAI, judge: Path) -> None:
    rewards = truth(judge, "<user>3 + 4?\n")
    answer = await ask(client, n=5, by="reward", reward="judge")
    assert samples(answer) == sorted(range(5), key=lambda i: -rewards[i])
    for choice in answer.choices:
        note = choice.plinth
        assert note["score"] == pytest.approx(rewards[note["sample"]], abs=1e-5)
        assert note["parts"] == {"reward": note["score"]}


async def test_answers_that_their_length_ended_are_scored_without_an_end(
    client: openai.AsyncOpenAI, judge: Path
) -> None:
    rewards = truth(judge, "<user>3 + 4?\n", cut_to=4)
    extra = {"best_of": 5, "select": {"by": "reward", "reward": "judge"}}
    answer = await client.chat.completions.create(
        model="chat", messages=ASK, n=5, seed=1, max_tokens=4, extra_body=extra
    )
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    for choice in answer.choices:
        note = choice.plinth
        assert note["score"] == pytest.approx(rewards[note["sample"]], abs=1e-5)


def counted(weights: list[float]) -> dict[str, float]:
    """Each answer's share, by a naive count."""
    totals: dict[str, float] = defaultdict(float)
    for said, weight in zip(SAID, weights, strict=True):
        if said is not None:
            totals[said] += weight
    whole = sum(totals.values())
    return {said: total / whole for said, total in totals.items()}


async def test_the_majority_wins(client: openai.AsyncOpenAI, stack: Stack) -> None:
    """Two each, and a tie goes to the one that was there first; without the last it is 8."""
    answer = await ask(client, n=5, by="vote", pattern=PATTERN)
    assert samples(answer) == [0, 3, 1, 4, 2]
    assert answer.choices[0].plinth == {
        "sample": 0, "by": "vote", "score": 0.5, "votes": 2, "answer": "8", "weight": 1.0,
    }  # fmt: skip
    assert answer.choices[4].plinth["votes"] == 0
    assert answer.choices[4].plinth["answer"] is None
    answer = await ask(client, k=4, by="vote", pattern=PATTERN, weights="equal")
    assert samples(answer) == [0]
    assert answer.choices[0].plinth["score"] == pytest.approx(2 / 3)


async def test_votes_are_weighed_by_likelihood(client: openai.AsyncOpenAI) -> None:
    shares = counted([math.exp(mean) for mean in MEANS])
    assert shares["7"] > shares["8"]
    answer = await ask(client, n=2, by="vote", pattern=PATTERN, weights="likelihood")
    assert samples(answer) == [1, 4]  # its likelier voice first
    for choice in answer.choices:
        assert choice.plinth["answer"] == "7"
        assert choice.plinth["votes"] == 2
        assert choice.plinth["score"] == pytest.approx(shares["7"])


async def test_votes_are_weighed_by_reward(client: openai.AsyncOpenAI, judge: Path) -> None:
    rewards = truth(judge, "<user>3 + 4?\n")
    rules = [{"rule": {"kind": "contains", "phrases": ["seven"]}, "weight": 3}]
    total = [
        reward + 3 * ("seven" in said.text) for reward, said in zip(rewards, ANSWERS, strict=True)
    ]
    shares = counted([math.exp(one) for one in total])
    answer = await ask(
        client, by="vote", pattern=PATTERN, weights="reward", reward="judge", rules=rules
    )
    winner = max(shares, key=lambda said: shares[said])
    assert winner == "7"
    assert samples(answer) == [1]
    assert answer.choices[0].plinth["score"] == pytest.approx(shares["7"], abs=1e-5)


async def test_an_answer_that_cannot_be_scored_comes_last(
    client: openai.AsyncOpenAI, stack: Stack, judge: Path
) -> None:
    stack.shard.says = [Said.evenly(" ", -0.1), ANSWERS[0], ANSWERS[1]]
    try:
        answer = await ask(client, k=3, n=3, by="reward", reward="judge")
        assert answer.choices[2].plinth["sample"] == 0
        assert answer.choices[2].plinth["score"] is None
        assert answer.choices[2].plinth["reasons"] == {"reward": "the response is empty"}
        stack.shard.says = [Said.evenly(" ", -0.1)] * 2
        call = ask(client, k=2, by="reward", reward="judge")
        await refused(call, 400, "not_scored", "select", "the response is empty")
    finally:
        stack.shard.says = ANSWERS


EVIL = r"(a+)+$"
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({"select": {"by": "likelihood"}}, "select", "invalid_select", "needs best_of"),
    ({"best_of": 2, "n": 3}, "best_of", "invalid_best_of", "at least n"),
    ({"best_of": 9}, "best_of", "invalid_value", "8"),
    ({"best_of": 2, "stream": True}, "stream", "best_of_stream", "streamed"),
    ({"by": "best"}, "select.by", "invalid_value", ""),
    ({"by": "vote"}, "select.pattern", "invalid_select", "needs a pattern"),
    ({"by": "vote", "pattern": r"\d+"}, "select.pattern", "invalid_pattern", "no group"),
    ({"by": "vote", "pattern": "("}, "select.pattern", "invalid_pattern", "unterminated"),
    ({"by": "vote", "pattern": "(" + "a" * 1000 + ")"}, "select.pattern", "invalid_value", "1000"),
    ({"by": "reward"}, "select.reward", "invalid_select", "name a reward model"),
    ({"by": "reward", "rules": []}, "select.rules", "invalid_value", ""),
    ({"by": "reward", "reward": "chat"}, "select.reward", "invalid_argument", "chat@1 is a model"),
    ({"by": "reward", "rules": [{"rule": {"kind": "max_words", "n": 1}, "weight": 1e9}]},
     "select.rules.0.weight", "invalid_value", ""),
    ({"by": "reward", "rules": [{"rule": {"kind": "max_words"}}]}, "select.rules.0.rule",
     "rule_invalid", "select.rules.0.rule.n"),
    ({"by": "reward", "reward": "nobody"}, "select.reward", "artifact_not_found", "nobody"),
    ({"by": "reward", "rules": [{"rule": {"kind": "short"}}]}, "select.rules.0.rule",
     "rule_unknown", "select.rules.0.rule: kind 'short'"),
    ({"by": "likelihood", "reward": "judge"}, "select.reward", "invalid_select", "is for"),
    ({"by": "vote", "pattern": "(a)", "rules": [{"rule": {}}]}, "select.rules",
     "invalid_select", "is for"),
    ({"by": "reward", "reward": "judge", "weights": "equal"}, "select.weights",
     "invalid_select", "vote"),
    ({"by": "reward", "reward": "judge", "colour": 1}, "select.colour", "unknown_parameter", ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "code", "words"), BAD, ids=lambda v: str(v)[:50])
async def test_what_is_wrong_is_said_before_anything_is_made(
    client: openai.AsyncOpenAI, stack: Stack, judge: Path, change: dict[str, Any], param: str,
    code: str, words: str,
) -> None:  # fmt: skip
    before = len(stack.shard.requests)
    body = {"best_of": 2, "select": change} if "by" in change else change
    call = client.chat.completions.create(model="chat", messages=ASK, extra_body=body)
    error = await refused(call, 404 if code == "artifact_not_found" else 400, code, param, words)
    assert error.type == "invalid_request_error"
    assert len(stack.shard.requests) == before


async def test_a_pattern_that_finds_nothing_and_one_that_never_ends(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    call = ask(client, by="vote", pattern=r"result: (\d+)")
    await refused(call, 400, "no_answer_found", "select.pattern", "I think the answer")
    stack.shard.says = [Said.evenly("a" * 40 + "!", -0.1)] * 2
    try:
        call = ask(client, k=2, by="vote", pattern=EVIL)
        await refused(call, 400, "invalid_pattern", "select.pattern", "processor time")
    finally:
        stack.shard.says = ANSWERS
    assert samples(await ask(client, k=4, by="vote", pattern=PATTERN)) == [0]


async def test_rewards_need_their_scope_and_votes_do_not(stack: Stack, judge: Path) -> None:
    redis = connect(stack.redis_url)
    key, _ = await KeyStore(redis).create("acme", {"inference"})
    await redis.aclose()
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{stack.url}/v1", max_retries=0) as acme:
        assert samples(await ask(acme, k=4, by="vote", pattern=PATTERN)) == [0]
        rules = [{"rule": {"kind": "lower_case"}}]
        call = ask(acme, by="reward", rules=rules)
        await refused(call, 403, "scope_missing", None, "rewards")


async def test_tokens_together_count_every_answer(client: openai.AsyncOpenAI, stack: Stack) -> None:
    async with stack.also_serving("long", context=1_000_000):
        call = client.chat.completions.create(
            model="long", messages=ASK, max_tokens=100_000, extra_body={"best_of": 3}
        )
        await refused(call, 400, "too_many_tokens", "best_of", "3 answers")


async def test_hanging_up_frees_every_shard(stack: Stack) -> None:
    stack.shard.delay_s = 0.05
    headers = {"authorization": f"Bearer {stack.key}"}
    try:
        async with httpx.AsyncClient(
            base_url=stack.url, headers=headers, timeout=PATIENCE_S
        ) as http:
            body = {"model": "chat", "messages": ASK, "best_of": 5}
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await until(lambda: stack.shard.running == 5)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: stack.shard.running == 0, timeout_s=PATIENCE_S)
    finally:
        stack.shard.delay_s = 0.0
