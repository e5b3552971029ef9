"""REST and gRPC agree on what a request may say, and sentinels mean what their users mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plinth.gateway import limits
from plinth.gateway.openai.requests import ChatBody, CompletionBody
from plinth.gateway.services.generation_requests import check_chat, check_completion
from plinth.shared.api import enums
from plinth.shared.errors import InvalidArgument
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import generation_pb2 as pb

USER = {"role": "user", "content": "hi"}
ROLES = st.sampled_from([*limits.ROLES, "tool", "function", "king", "", "User"])
# What proto3 strings can hold: all of Unicode but lone surrogates.
TEXTS = st.text(max_size=12) | st.sampled_from(["\x1b[31mred\x1b[0m", "a\0b", "\x07", "\x9b", ""])


def refused(check: Any, *arguments: Any) -> str | None:
    """The field that is refused; None: all is well."""
    try:
        check(*arguments)
    except InvalidArgument as error:
        assert error.field in error.message
        return error.field.removeprefix("options.").removeprefix("sampling.")
    return None


@given(st.lists(st.tuples(ROLES, TEXTS), max_size=3), st.lists(TEXTS, max_size=9), TEXTS)
def test_both_take_the_same_conversations(
    messages: list[tuple[str, str]], stops: list[str], user: str
) -> None:
    rest = {
        "model": "chat",
        "messages": [{"role": role, "content": text} for role, text in messages],
        "stop": stops,
        "user": user,
    }
    grpc = pb.ChatRequest(
        model="chat",
        messages=[chat_pb2.ChatMessage(role=role, content=text) for role, text in messages],
        options=pb.GenerationOptions(stop=stops, user=user),
    )
    by_rest, by_grpc = refused(ChatBody.of, rest), refused(check_chat, grpc)
    assert (by_rest is None) == (by_grpc is None), (by_rest, by_grpc)


@given(st.integers(0, 1_100))
def test_both_take_as_many_messages(count: int) -> None:
    message = chat_pb2.ChatMessage(**USER)
    by_rest = refused(ChatBody.of, {"model": "chat", "messages": [USER] * count})
    by_grpc = refused(check_chat, pb.ChatRequest(model="chat", messages=[message] * count))
    assert by_rest == by_grpc == (None if 1 <= count <= 1_024 else "messages")


NUMBERS = st.one_of(st.none(), st.floats(-1, 3, width=32), st.sampled_from([0.0, 1.0, 2.0, 1e-30]))


@given(
    NUMBERS,
    NUMBERS,
    st.none() | st.integers(0, 1_000_000),
    st.none() | st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.sampled_from(["", *enums.words(sampling_pb2.Speculation)]),
    st.lists(st.integers(0, 2**32 - 1), max_size=70),
)
def test_both_take_the_same_sampling(
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    max_tokens: int | None,
    top_logprobs: int,
    speculation: str,
    stop_token_ids: list[int],
) -> None:
    common: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_tokens": max_tokens,
        "stop_token_ids": stop_token_ids,
    }
    rest = {"model": "chat", "messages": [USER], "speculation": speculation, **common}
    rest |= {"logprobs": True, "top_logprobs": top_logprobs}
    message = chat_pb2.ChatMessage(**USER)
    drafts: Any = enums.number(sampling_pb2.Speculation, speculation)
    sampling = sampling_pb2.SamplingParams(**common, top_logprobs=top_logprobs, speculation=drafts)
    grpc = pb.ChatRequest(
        model="chat", messages=[message], options=pb.GenerationOptions(sampling=sampling)
    )
    by_rest, by_grpc = refused(ChatBody.of, rest), refused(check_chat, grpc)
    assert (by_rest is None) == (by_grpc is None), (by_rest, by_grpc)
    if by_rest is None:
        wanted = limits.normalised(sampling)
        if max_tokens is not None:
            wanted.max_tokens = min(max_tokens, limits.MAX_TOKENS)
        assert ChatBody.of(rest).sampling() == wanted


@given(TEXTS)
def test_both_take_the_same_prompts(text: str) -> None:
    by_rest = refused(CompletionBody.of, {"model": "chat", "prompt": text})
    by_grpc = refused(check_completion, pb.CompleteRequest(model="chat", prompt=text))
    assert by_rest == by_grpc


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_a_text_is_taken_unless_it_holds_nul_or_half_a_pair(text: str) -> None:
    wrong = any(c == "\0" or 0xD800 <= ord(c) <= 0xDFFF for c in text)
    assert (refused(limits.check_text, text, "prompt") == "prompt") == wrong


def sampling(**given_: Any) -> sampling_pb2.SamplingParams:
    return ChatBody.of({"model": "chat", "messages": [USER], **given_}).sampling()


def test_sentinels() -> None:
    assert not sampling(seed=-1).HasField("seed")
    assert sampling(seed=-2).seed == 2**64 - 2
    assert sampling(seed=0).HasField("seed")
    assert sampling(top_k=-1).top_k == sampling(top_k=0).top_k == 0
    assert not sampling(max_tokens=-1).HasField("max_tokens")
    assert not sampling(max_completion_tokens=-1).HasField("max_tokens")
    body = CompletionBody.of({"model": "chat", "prompt": "x", "max_tokens": -1})
    assert not body.sampling().HasField("max_tokens")
    assert CompletionBody.of({"model": "chat", "prompt": "x"}).sampling().max_tokens == 16
    assert CompletionBody.of({"model": "chat", "prompt": "x", "stop": ["", "a"]}).stops == ("a",)
    assert sampling(temperature=1e-30).temperature == 0
    assert refused(ChatBody.of, {"model": "chat", "messages": [USER], "max_tokens": 0}) == (
        "max_tokens"
    )


@given(st.floats(0, 1, allow_subnormal=True))
def test_a_nucleus_is_never_empty_for_the_engine(top_p: float) -> None:
    """It takes 0 < top_p <= 1, as a 32-bit number."""
    assert 0 < sampling(top_p=top_p).top_p <= 1


@given(st.integers(1, 10**30), st.integers(1, 5_000_000), st.integers(0, 5_000_000))
def test_one_rule_for_large_max_tokens(asked: int, context: int, prompt: int) -> None:
    """As many as asked for, as the context leaves, and as one answer may have: never an error."""
    assume(1 <= prompt < context)
    given_ = sampling(max_tokens=asked).max_tokens
    assert limits.room(prompt, given_, context, "messages") == min(
        asked, context - prompt, limits.MAX_TOKENS
    )


@given(st.integers(1, limits.MAX_ANSWERS), st.integers(0, limits.MAX_TOP_LOGPROBS))
def test_whole_answers_have_some_tokens_and_no_more_log_probs_than_are_held(
    answers: int, alternatives: int
) -> None:
    tokens = limits.held_tokens(answers, alternatives)
    assert tokens >= 1
    assert answers * tokens * (1 + alternatives) <= limits.MAX_LOGPROBS_TOGETHER


@pytest.mark.parametrize(
    ("prompts", "samples", "field"),
    [(1, 8, None), (2_048, 1, None), (256, 8, None), (257, 8, "prompt"), (2_049, 1, "prompt")],
)
def test_many_prompts(prompts: int, samples: int, field: str | None) -> None:
    body = {"model": "chat", "prompt": ["a"] * prompts, "n": samples}
    assert refused(CompletionBody.of, body) == field
