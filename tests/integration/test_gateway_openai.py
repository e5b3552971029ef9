"""The official OpenAI client against the real gateway, Redis and scripted stages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from gateway_stages import DIGEST, EOS, Shard, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.v1 import generation_pb2_grpc
from plinth.v1.generation_pb2 import CompleteRequest

ASK = [{"role": "user", "content": "Say it"}]


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=stack.key, base_url=f"{stack.url}/v1", max_retries=0
    ) as made:
        yield made


async def test_a_chat_answer_is_whole(client: openai.AsyncOpenAI, stack: Stack) -> None:
    answer = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=60, seed=3, temperature=0
    )
    (choice,) = answer.choices
    assert choice.message.content == script_text(3, 0, 60)
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    prompt = len("<user>Say it\n<assistant>")
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == 60
    assert answer.usage.total_tokens == prompt + 60
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == prompt // 16 * 16
    assert answer.system_fingerprint == DIGEST
    assert answer.seed == 3  # type: ignore[attr-defined]


async def test_a_stream_says_the_same_as_a_whole_answer(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    stream = await client.chat.completions.create(
        model="chat",
        messages=ASK,
        max_completion_tokens=100,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == script_text(5, 0, 100)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 100
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


@pytest.mark.parametrize("n", [1, 3])
async def test_each_chunk_tells_the_usage_so_far_if_asked(
    client: openai.AsyncOpenAI, n: int
) -> None:
    """By vLLM's option: never less than in the chunk before, and all of it in the end."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.with_raw_response.chat.completions.create(
        model="chat", messages=ASK, max_tokens=40, seed=5, n=n, stream=True, stream_options=options
    )
    assert "x-plinth-ignored" not in stream.headers
    chunks = [chunk async for chunk in stream.parse()]
    usages = [chunk.usage for chunk in chunks]
    assert all(usage is not None and usage.prompt_tokens > 0 for usage in usages)
    made = [usage.completion_tokens for usage in usages]  # type: ignore[union-attr]
    assert made == sorted(made) and made[0] == 0 and made[-1] == 40 * n
    assert len(set(made)) > 2
    assert chunks[-1].choices == []


async def test_no_chunk_holds_half_a_character(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=300, seed=0, stream=True
    )
    pieces = [c.choices[0].delta.content or "" async for c in stream]
    assert "\ufffd" not in "".join(pieces[:-2])
    assert "".join(pieces) == script_text(0, 0, 300)


def test_the_synchronous_client(tmp_path: Path, redis_server: str, redis_client: object) -> None:
    async def main() -> None:
        async with running_stack(tmp_path, redis_server) as stack:
            await asyncio.to_thread(ask, stack)

    def ask(stack: Stack) -> None:
        with openai.OpenAI(api_key=stack.key, base_url=f"{stack.url}/v1") as client:
            assert [model.id for model in client.models.list()] == ["chat"]
            assert client.models.retrieve("chat").context_length == 4096  # type: ignore[attr-defined]
            stream = client.completions.create(
                model="chat", prompt="Once", max_tokens=20, seed=1, stream=True
            )
            assert "".join(c.choices[0].text for c in stream) == script_text(1, 0, 20)
            answer = client.chat.completions.create(
                model="chat", messages=ASK, max_tokens=5, seed=1
            )
            assert answer.choices[0].message.content == script_text(1, 0, 5)

    asyncio.run(main())


async def test_stop_strings_end_the_text_and_free_the_shard(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    stack.shard.delay_s = 0.001
    answer = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=4000, seed=0, stop=["\nUser:", "never"]
    )
    assert answer.choices[0].message.content == script_text(0, 0, 300).split("\nUser:")[0]
    assert answer.choices[0].finish_reason == "stop"
    await until(lambda: stack.shard.running == 0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 200


async def test_the_model_may_end_by_itself(client: openai.AsyncOpenAI, stack: Stack) -> None:
    stack.shard.end_after = 7
    answer = await client.chat.completions.create(model="chat", messages=ASK, seed=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == script_text(0, 0, 7)
    assert list(stack.shard.requests[0].sampling.stop_token_ids) == [256]


async def test_a_completion_s_special_tokens_are_tokens_unless_switched_off(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    def given() -> tuple[list[int], list[int]]:
        request = stack.shard.requests.pop()
        ids = [id_ for span in request.input for id_ in span.tokens.ids]
        return ids, list(request.sampling.stop_token_ids)

    async def complete(prompt: object, **extra: object) -> tuple[list[int], list[int]]:
        await client.completions.create(
            model="chat", prompt=prompt, max_tokens=3, seed=1, extra_body=extra
        )
        return given()

    hi, plain = [*b"hi", EOS, *b"x"], list(b"hi<eos>x")
    assert await complete("hi<eos>x") == await complete("hi<eos>x", special_tokens=True)
    assert await complete("hi<eos>x") == (hi, [EOS])
    assert await complete("hi<eos>x", stop_token_ids=[7]) == (hi, [7, EOS])
    assert await complete("hi<eos>x", ignore_eos=True) == (hi, [])
    assert await complete("hi<eos>x", special_tokens=False) == (plain, [])
    assert await complete("hi x") == (list(b"hi x"), [])
    assert await complete(plain) == (plain, [])  # ids are what they are
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for told, expected in (({}, (hi, [EOS])), ({"parse_special_tokens": False}, (plain, []))):
            ask = CompleteRequest(model="chat", prompt="hi<eos>x", **told)
            ask.options.sampling.max_tokens = 3
            assert await stub.Complete(ask, metadata=[("authorization", f"Bearer {stack.key}")])
            assert given() == expected
    messages = [{"role": "user", "content": "hi<eos>x"}]
    await client.chat.completions.create(model="chat", messages=messages, max_tokens=3)
    assert EOS not in given()[0]
    with pytest.raises(openai.BadRequestError, match="special_tokens"):
        await complete("x", special_tokens="no")


async def test_a_prompt_is_asked_for_as_if_it_were_alone(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    """Prompts are encoded together: those beside one are nothing to it."""

    async def asked(prompts: object) -> list[tuple[list[int], list[int]]]:
        stack.shard.requests.clear()
        await client.completions.create(model="chat", prompt=prompts, max_tokens=1, seed=1)
        return sorted(
            ([*request.input[0].tokens.ids], [*request.sampling.stop_token_ids])
            for request in stack.shard.requests
        )

    prompts = [f"{'<eos>' * (number % 3 == 0)}{number}" for number in range(150)]
    alone = [one for prompt in prompts for one in await asked(prompt)]
    assert await asked(prompts) == sorted(alone)
    assert {len(ends) for _ids, ends in alone} == {0, 1}
    lists = [list(b"a"), list(b"bc")]
    assert await asked(lists) == [(list(b"a"), []), (list(b"bc"), [])]


async def test_several_samples_have_one_seed_and_their_own_index(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    answer = await client.chat.completions.create(
        model="chat", messages=ASK, n=3, max_tokens=40, seed=9
    )
    texts = {choice.index: choice.message.content for choice in answer.choices}
    assert texts == {index: script_text(9, index, 40) for index in range(3)}
    assert {r.sampling.seed for r in stack.shard.requests} == {9}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 120


async def test_a_request_without_a_seed_reports_the_one_it_got(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    answer = await client.chat.completions.create(model="chat", messages=ASK, max_tokens=30)
    seed = answer.seed  # type: ignore[attr-defined]
    assert stack.shard.requests[0].sampling.seed == seed
    again = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=30, seed=seed
    )
    assert again.choices[0].message.content == answer.choices[0].message.content


async def test_logprobs_of_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=2, seed=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("G", -0.25, [71])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("A", -0.25), ("B", -1.25)]


async def test_an_answer_cut_inside_a_character_ends_before_it_and_log_probs_tell_its_bytes(
    client: openai.AsyncOpenAI,
) -> None:
    asked = {"model": "chat", "messages": ASK, "max_tokens": 3, "seed": 0, "logprobs": True}
    answer = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
    (choice,) = answer.choices
    assert choice.message.content == "Gr"  # of "Größe", whose third letter has two bytes
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert b"".join(bytes(one.bytes) for one in choice.logprobs.content) == b"Gr\xc3"
    assert choice.logprobs.content[-1].token == "bytes:\\xc3"
    stream = await client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Gr"
    tokens = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert b"".join(bytes(one.bytes) for one in tokens) == b"Gr\xc3"
    text = await client.completions.create(
        model="chat", prompt="x", max_tokens=3, seed=0, n=2, extra_body={"best_of": 3}
    )
    assert all("\ufffd" not in choice.text for choice in text.choices)


async def test_logprobs_of_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="chat", prompt="x", max_tokens=2, seed=0, logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["G", "r"]
    assert logprobs.token_logprobs == [-0.25, -0.25]
    assert logprobs.top_logprobs == [{"A": -0.25}, {"A": -0.25}]
    assert logprobs.text_offset == [0, 1]


@pytest.mark.parametrize("stop", [None, "漢字 and"])
async def test_log_probs_tell_tokens_that_are_no_text_apart_and_where_they_are(
    client: openai.AsyncOpenAI, stack: Stack, stop: str | None
) -> None:
    """Each token is a byte; its two best alternatives are bytes of characters too."""
    stack.shard.tops = [0xF0, 0x9F]
    data = "Größe, naïve café — 漢字 and 🙂🎉 emoji".encode()
    made = data.partition((stop or "nothing").encode())
    sent = made[0].decode()
    data = made[0] + made[1]
    asked = {"model": "chat", "prompt": "x", "max_tokens": len(data), "seed": 0, "stop": stop}
    whole = await client.completions.create(**asked, logprobs=2)  # type: ignore[call-overload]
    stream = await client.completions.create(**asked, logprobs=2, stream=True)  # type: ignore[call-overload]
    chunks = [chunk.choices[0] async for chunk in stream]
    parts = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    choice = whole.choices[0]
    assert choice.text == sent == "".join(chunk.text for chunk in chunks)
    assert whole.usage.completion_tokens == len(data)
    for tokens, offsets, tops in (
        (choice.logprobs.tokens, choice.logprobs.text_offset, choice.logprobs.top_logprobs),
        (
            [token for part in parts for token in part.tokens],
            [offset for part in parts for offset in part.text_offset],
            [top for part in parts for top in part.top_logprobs],
        ),
    ):
        assert [
            bytes.fromhex(token[8:]) if token.startswith("bytes:") else token.encode()
            for token in tokens
        ] == [bytes([byte]) for byte in data]
        # The character of the text that sent contains each byte.
        at = [len(data[: n + 1].decode(errors="ignore")) for n in range(len(data))]
        begun = [end - (not is_inside(data, n)) for n, end in enumerate(at)]
        assert offsets == [min(one, len(sent)) for one in begun]
        assert tops == [{"bytes:\\xf0": -0.25, "bytes:\\x9f": -1.25}] * len(data)
    chat = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=3, seed=2, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert [(one.token, one.bytes) for one in content] == [
        ("bytes:\\xc3", [0xC3]),
        ("bytes:\\xb6", [0xB6]),
        ("bytes:\\xc3", [0xC3]),
    ]
    assert [top.bytes for top in content[0].top_logprobs] == [[0xF0], [0x9F]]


def is_inside(data: bytes, n: int) -> bool:
    """Whether the character that byte `n` belongs to goes on after it."""
    return n + 1 < len(data) and data[n + 1] & 0xC0 == 0x80


async def test_several_prompts_and_ids(client: openai.AsyncOpenAI, stack: Stack) -> None:
    answer = await client.completions.create(
        model="chat", prompt=[[1, 2, 3], [4]], max_tokens=4, seed=2, n=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[3].text == script_text(2, 1, 4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


async def test_a_client_that_hangs_up_cancels_the_shard(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    stack.shard.delay_s = 0.01
    stream = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=4000, stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: stack.shard.cancelled == 1, timeout_s=PATIENCE_S)


async def test_hanging_up_on_a_whole_answer_cancels_the_shard_too(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    stack.shard.delay_s = 0.01
    asking = asyncio.create_task(
        client.chat.completions.create(model="chat", messages=ASK, max_tokens=4000, n=2)
    )
    await until(lambda: stack.shard.running == 2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: stack.shard.cancelled == 2, timeout_s=PATIENCE_S)


async def test_a_full_queue_is_429_with_retry_after(
    client: openai.AsyncOpenAI, stack: Stack
) -> None:
    stack.shard.full = True
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="chat", messages=ASK)
    assert int(caught.value.response.headers["retry-after"]) >= 2
    assert caught.value.code == "queue_full"


async def test_a_full_shard_is_passed_over(client: openai.AsyncOpenAI, stack: Stack) -> None:
    stack.shard.full = True
    await stack.add_shard("shard-1", Shard())
    for _ in range(4):
        answer = await client.chat.completions.create(
            model="chat", messages=ASK, max_tokens=9, seed=0
        )
        assert answer.choices[0].message.content == script_text(0, 0, 9)


async def test_an_unknown_model_is_named_with_those_that_there_are(
    client: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nope", messages=ASK)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'chat'" in caught.value.message


async def test_a_wrong_key_is_refused(stack: Stack) -> None:
    async with openai.AsyncOpenAI(api_key="plinth-wrong", base_url=f"{stack.url}/v1") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_request_ids_go_all_the_way(client: openai.AsyncOpenAI, stack: Stack) -> None:
    answer = await client.chat.completions.with_raw_response.create(
        model="chat", messages=ASK, max_tokens=1, extra_headers={"x-request-id": "trace-7"}
    )
    assert answer.headers["x-request-id"] == "trace-7"
    assert answer.parse().id == "chatcmpl-trace-7"
    assert stack.shard.seen == [("trace-7", "default")]
