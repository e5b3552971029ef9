"""Requests that once cost seconds or gigabytes: of the largest size that the gateway reads, or with
the largest answers. By name: the path that each goes to, and its body."""

from __future__ import annotations

import json

LIMIT = 2 * 2**20  # gateway.max_body_bytes
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TASKS = "/v1/preferences/tasks"
_SIZE = LIMIT - 1_000


def _many(unit: bytes, size: int = _SIZE) -> bytes:
    return b",".join([unit] * (size // (len(unit) + 1)))


def _completion(prompt: bytes, more: bytes = b"") -> tuple[str, bytes]:
    start = b'{"model":"long","max_tokens":1,' + more
    return COMPLETIONS, start + b'"prompt":' + prompt + b"}"


def _chat(more: bytes) -> tuple[str, bytes]:
    messages = b'"messages":[{"role":"user","content":"x"}]'
    return CHAT, b'{"model":"long","max_tokens":1,' + messages + b"," + more + b"}"


def _said(content: bytes) -> tuple[str, bytes]:
    message = b'{"role":"user","content":' + content + b"}"
    return CHAT, b'{"model":"long","max_tokens":1,"messages":[' + message + b"]}"


def _refused() -> dict[str, tuple[str, bytes]]:
    keys = b",".join(b'"k%d":1' % number for number in range(100_000))
    rules = b'"best_of":2,"select":{"by":"reward","rules":[' + _many(b'{"x":1}') + b"]}"
    return {
        "objects for prompts": _completion(b"[" + _many(b"{}") + b"]"),
        "lists for prompts": _completion(b"[" + _many(b"[]") + b"]"),
        "texts for prompts": _completion(b"[" + _many(b'"a"') + b"]"),
        "fractions for ids": _completion(b"[" + _many(b"1.5") + b"]"),
        "one long number": _completion(b"9" * _SIZE),
        "nesting": _completion(b"[" * _SIZE),
        "white space": _completion(b"[1" + b" " * _SIZE + b"x]"),
        "half a pair": _completion(b'"' + b"a" * _SIZE + b'\\ud800"'),
        "stop strings": _chat(b'"stop":[' + _many(b"1") + b"]"),
        "texts for stop strings": _chat(b'"stop":[' + _many(b'"a"') + b"]"),
        "empty stop strings": _chat(b'"stop":[' + _many(b'""') + b"]"),
        "metadata": _chat(b'"metadata":{' + keys + b"}"),
        "unknown fields": _chat(keys),
        "one field again and again": _chat(_many(b'"a":{}')),
        "parts": _said(b"[" + _many(b"{}") + b"]"),
        "messages": (CHAT, b'{"model":"long","messages":[' + _many(b"{}") + b"]}"),
        "rules": _chat(rules),
        "tasks": (TASKS, b'{"tasks":[' + _many(b'{"x":1}') + b"]}"),
        "prompts of tasks": (TASKS, b'{"tasks":[{"prompt":[' + _many(b'{"x":1}') + b"]}]}"),
    }


def _tokenized() -> dict[str, tuple[str, bytes]]:
    """Those that only their number of tokens makes too long, so that they go further."""
    emoji = "🎉".encode()
    wide = b'"' + emoji + b"a" * _SIZE + b'"'
    escapes = b'"' + emoji + b"aaaa\\n" * (_SIZE // 6) + b'"'
    pairs = b'"' + b"\\ud83d\\ude00" * (_SIZE // 12) + b'"'
    part = b'{"type":"text","text":"a"}'
    message = b'{"role":"user","content":"' + b"a" * 2_000 + b'"}'
    return {
        "too many ids": _completion(b"[" + _many(b"1") + b"]"),
        "ids": _completion(b"[" + b",".join([b"65"] * 262_144) + b"]"),
        "ids for eight answers": _completion(b"[" + b",".join([b"65"] * 262_144) + b"]", b'"n":8,'),
        "text that fits": _completion(b'"' + b"a" * 262_144 + b'"'),
        "text that fits in a chat": _said(b'"' + b"a" * 262_144 + b'"'),
        "long text": _completion(b'"' + b"a" * _SIZE + b'"'),
        "wide text": _completion(wide),
        "wide text with escapes": _completion(escapes),
        "pairs": _completion(pairs),
        "long text in a chat": _said(b'"' + b"a" * _SIZE + b'"'),
        "wide text in a chat": _said(wide),
        "wide text with escapes in a chat": _said(escapes),
        "pairs in a chat": _said(pairs),
        "text parts": _said(b"[" + _many(part) + b"]"),
        "a thousand messages": (
            CHAT,
            b'{"model":"long","max_tokens":1,"messages":[' + b",".join([message] * 1_020) + b"]}",
        ),
        "two thousand prompts": _completion(json.dumps(["a" * 1_000] * 2_048).encode()),
        "two thousand lists of ids": _completion(
            b"[" + b",".join([b"[" + b",".join([b"65"] * 128) + b"]"] * 2_048) + b"]"
        ),
    }


def _answered() -> dict[str, tuple[str, bytes]]:
    """Small ones, whose answers are large."""
    chat = '{"model":"long","seed":3,"messages":[{"role":"user","content":"x"}],'
    shown = f'{chat}"logprobs":true,"top_logprobs":20,'
    text = '{"model":"long","seed":3,"prompt":"x","logprobs":5,'
    return {
        "one whole chat": (CHAT, f'{shown}"max_tokens":100000}}'.encode()),
        "eight whole chats": (CHAT, f'{shown}"n":8,"max_tokens":4000}}'.encode()),
        "eight whole completions": (COMPLETIONS, f'{text}"n":8,"max_tokens":4000}}'.encode()),
        "eight streams": (CHAT, f'{shown}"n":8,"max_tokens":2000,"stream":true}}'.encode()),
    }


def _taken() -> dict[str, tuple[str, bytes]]:
    """Large, and nothing is wrong with them."""
    text = "🎉" + "a" * 6_500
    task = {"prompt": text, "responses": [text, text]}
    tasks = {"collection": "c", "tasks": [task] * 100}
    return {"a hundred tasks": (TASKS, json.dumps(tasks, ensure_ascii=False).encode())}


REFUSED = _refused()
TAKEN = _taken()
ANSWERED = _answered()
TOKENIZED = _tokenized()
