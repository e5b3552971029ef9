"""langchain-openai: named messages, batches of 12 of chats and of completions, streams."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

BASE, KEY, MODEL = sys.argv[1:4]
PARIS = "The capital of France is Paris."
NUMBERS = range(1, 13)
COMMON: dict[str, Any] = {"base_url": BASE, "api_key": KEY, "model": MODEL, "temperature": 0}

chat = ChatOpenAI(**COMMON)
asked = [
    SystemMessage("You are a helpful assistant.", name="rules"),
    HumanMessage("What is the capital of France?", name="alice"),
]
answer = chat.invoke(asked)
assert "Paris" in answer.content, answer
assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] >= 7
answer.name = "plinth"
further = asyncio.run(chat.ainvoke([*asked, answer, HumanMessage("And of Italy?", name="bob")]))
assert "Rome" in further.content, further

parts = [chunk.text for chunk in chat.stream("What is the capital of France?")]
assert "".join(parts) == PARIS and len(parts) > 1

chain = ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")]) | chat
capitals = chain.batch([{"country": "France"}] * 12)
assert [message.content for message in capitals] == [PARIS] * 12

# One request with all 12 prompts: langchain sends up to 20 at a time.
texts = OpenAI(**COMMON, max_tokens=4).generate([f"Write {number}:" for number in NUMBERS])
assert len(texts.generations) == 12
assert all(generation[0].text for generation in texts.generations)
assert texts.llm_output is not None and texts.llm_output["token_usage"]["completion_tokens"] > 12
print(
    f"{answer.content!r}, {further.content!r}; {len(parts)} parts; {len(capitals)} chats; "
    f"{len(texts.generations)} completions in one request"
)
