"""AutoGen: an agent, and two who talk in turn; each message carries its author's name."""

from __future__ import annotations

import asyncio
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelFamily, ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient

BASE, KEY, MODEL = sys.argv[1:4]
INFO = ModelInfo(
    vision=False,
    function_calling=False,
    json_output=False,
    family=ModelFamily.UNKNOWN,
    structured_output=False,
)


async def talk() -> str:
    client = OpenAIChatCompletionClient(
        model=MODEL, base_url=BASE, api_key=KEY, model_info=INFO, temperature=0, max_tokens=48
    )
    alone = AssistantAgent("geographer", client, model_client_stream=True)
    parts, answer = 0, ""
    async for event in alone.run_stream(task="What is the capital of France?"):
        parts += isinstance(event, ModelClientStreamingChunkEvent)
        if isinstance(event, TextMessage) and event.source == "geographer":
            answer = event.content
    assert "Paris" in answer and parts > 1

    pair = RoundRobinGroupChat(
        [AssistantAgent("writer", client), AssistantAgent("critic", client)],
        termination_condition=MaxMessageTermination(5),
    )
    result = await pair.run(task="Write one sentence about rain.")
    spoke = [message.source for message in result.messages]
    assert spoke == ["user", "writer", "critic", "writer", "critic"]
    assert all(isinstance(m, TextMessage) and m.content for m in result.messages)
    await client.close()
    return f"{answer!r} in {parts} parts; a talk of {spoke}"


print(asyncio.run(talk()))
