"""Small reward models and requests for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints import byte_tokenizer, random_gpt2, random_llama
from plinth.models.reward import RewardModel, save_reward_model
from plinth.models.weights import load_decoder
from plinth.shared.api.structs import struct_of
from plinth.v1 import chat_pb2
from plinth.v1 import rewards_pb2 as pb


def reward_model(
    folder: Path,
    *,
    seed: int = 0,
    family: str = "llama",
    context: int = 128,
    spoil: float | None = None,
) -> Path:
    """With the byte tokenizer beside it. spoil: a value for every weight of the head."""
    make = random_llama if family == "llama" else random_gpt2
    body = make(folder.with_name(f"{folder.name}-body"), seed=seed, context=context, layers=2)
    model = RewardModel.of(load_decoder(body), seed)
    with torch.no_grad():
        if spoil is not None:
            model.score.weight.fill_(spoil)
    save_reward_model(model, folder)
    return byte_tokenizer(folder)


def rule(name: str, kind: str, **options: Any) -> pb.RewardSource:
    return pb.RewardSource(name=name, rule=struct_of({"kind": kind, **options}, "rule"))


def of_text(text: str, prompt: str = "", **more: Any) -> pb.RewardItem:
    item = pb.RewardItem(response_text=text, **more)
    if prompt:
        item.prompt_text = prompt
    return item


def of_ids(prompt: Sequence[int], response: Sequence[int]) -> pb.RewardItem:
    return pb.RewardItem(
        prompt_tokens=pb.RewardTokens(ids=prompt), response_tokens=pb.RewardTokens(ids=response)
    )


def of_messages(text: str, *turns: tuple[str, str]) -> pb.RewardItem:
    messages = [chat_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    return pb.RewardItem(prompt_messages=pb.RewardMessages(messages=messages), response_text=text)
