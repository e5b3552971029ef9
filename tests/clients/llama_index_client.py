"""llama-index's OpenAILike: chats and completions, whole, streamed and async."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

BASE, KEY, MODEL = sys.argv[1:4]
PARIS = "The capital of France is Paris."
COMMON: dict[str, Any] = {"api_base": BASE, "api_key": KEY, "model": MODEL, "temperature": 0}
ASKED = [ChatMessage(role="user", content="What is the capital of France?")]

chat = OpenAILike(**COMMON, is_chat_model=True)
answer = chat.chat(ASKED)
assert answer.message.content == PARIS, answer
parts = [part.delta or "" for part in chat.stream_chat(ASKED)]
assert "".join(parts) == PARIS
history = [*ASKED, answer.message, ChatMessage(role="user", content="And of Italy?")]
further = asyncio.run(chat.achat(history))
assert "Rome" in (further.message.content or "")

text = OpenAILike(**COMMON, is_chat_model=False, max_tokens=8)
whole = text.complete("One, two, three,").text
assert "four" in whole
assert "".join(part.delta or "" for part in text.stream_complete("One, two, three,")) == whole
print(f"{answer.message.content!r}, {further.message.content!r}; {len(parts)} parts; {whole!r}")
