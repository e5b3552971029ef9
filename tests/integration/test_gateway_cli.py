"""`plinth chat` and `plinth keys` as a person runs them, against a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway_stages import Stack, plinth, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.cli.chat import printable


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


SAMPLING = ("--seed", "3", "--max-tokens", "30")


@pytest.mark.parametrize("door", ["grpc", "rest"])
async def test_one_question(stack: Stack, door: str) -> None:
    url = () if door == "grpc" else ("--url", stack.url)
    code, out, err = await plinth(stack, "chat", "Say it", *SAMPLING, *url)
    assert (code, out) == (0, script_text(3, 0, 30) + "\n"), err


async def test_a_conversation_keeps_its_turns(stack: Stack) -> None:
    lines = "one\n\ntwo\n/clear\nthree\n/exit\nnever\n"
    code, out, err = await plinth(stack, "chat", *SAMPLING, "--system", "brief", stdin=lines)
    assert code == 0, err
    answer = script_text(3, 0, 30)
    assert out == f"{answer}\n" * 3
    prompts = [bytes(r.input[0].tokens.ids).decode() for r in stack.shard.requests]
    assert prompts == [
        "<system>brief\n<user>one\n<assistant>",
        f"<system>brief\n<user>one\n<assistant>{answer}\n<user>two\n<assistant>",
        "<system>brief\n<user>three\n<assistant>",
    ]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("--model", "nope"), {}, "no model 'nope' is served; there are: chat"),
        ((), {"PLINTH_API_KEY": "wrong"}, "Incorrect API key"),
        (("--url", "127.0.0.1:1"), {}, "127.0.0.1:1"),
        (("--url", "http://127.0.0.1:1"), {}, "does not answer"),
    ],
)
async def test_what_goes_wrong_is_one_line(
    stack: Stack, arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    code, out, err = await plinth(stack, "chat", "hi", *arguments, **environment)
    assert (code, out) == (1, "")
    assert words in err
    assert "Traceback" not in err


def test_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\x07b\n\tü\x9b漢") == "a\ufffd[2J\ufffdb\n\tü\ufffd漢"


async def test_keys_are_made_listed_and_revoked(stack: Stack) -> None:
    code, out, err = await plinth(
        stack, "keys", "create", "--scope", "inference", "--tenant", "acme", "--label", "laptop"
    )
    assert code == 0, err
    key = out.strip()
    assert key.startswith("plinth-")
    code, out, _ = await plinth(stack, "chat", "hi", *SAMPLING, PLINTH_API_KEY=key)
    assert (code, out) == (0, script_text(3, 0, 30) + "\n")
    assert stack.shard.seen[-1][1] == "acme"
    code, out, _ = await plinth(stack, "keys", "list", "--json")
    assert key not in out
    key_id = err.split()[1]
    assert key_id in out
    code, out, err = await plinth(stack, "keys", "update", key_id)
    assert (code, "give --scope, --role or --label" in err) == (1, True)
    code, out, _ = await plinth(stack, "keys", "update", key_id, "--label", "phone")
    assert (code, "inference" in out) == (0, True)
    code, out, _ = await plinth(stack, "keys", "list", "--filter", "state = ACTIVE")
    assert (code, "phone" in out) == (0, True)
    code, _, err = await plinth(stack, "keys", "revoke", "first")
    assert (code, "plinth keys create --scope admin" in err) == (1, True)
    code, out, _ = await plinth(stack, "keys", "revoke", key_id)
    assert code == 0
    refused = False

    async def refresh() -> None:
        nonlocal refused
        while not refused:
            code, _, err = await plinth(stack, "chat", "hi", *SAMPLING, PLINTH_API_KEY=key)
            refused = code == 1 and "Incorrect API key" in err

    checking = asyncio.create_task(refresh())
    await until(lambda: refused, timeout_s=PATIENCE_S)
    await checking
    code, _, err = await plinth(stack, "keys", "create", "--scope", "root")
    assert (code, "root" in err) == (1, True)


async def test_a_key_can_be_kept_for_the_other_commands(stack: Stack) -> None:
    """As after a restore into a new data directory, which gets no first key."""
    file = stack.settings.first_key_file
    code, _, err = await plinth(stack, "keys", "create", "--save")
    assert (code, "holds a key already" in err) == (1, True)
    file.unlink()
    code, _, err = await plinth(stack, "chat", "hi", *SAMPLING)
    assert (code, "plinth keys create --local --scope admin --save" in err) == (1, True)
    made = await plinth(stack, "keys", "create", "--local", "--scope", "admin", "--save")
    code, out, err = made
    assert code == 0, err
    assert (file.read_text(), file.stat().st_mode & 0o777) == (out.strip(), 0o600)
    code, _, err = await plinth(stack, "chat", "hi", *SAMPLING)
    assert code == 0, err
