"""Chats by gRPC with plinth.client, streamed: python chat.py MODEL QUESTION

PLINTH_URL is the gateway (127.0.0.1:8081), PLINTH_API_KEY the key.
"""

import sys

from plinth.client import Client, PlinthError
from plinth.v1.chat_pb2 import ChatMessage
from plinth.v1.generation_pb2 import GenerationOptions
from plinth.v1.sampling_pb2 import SamplingParams

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, question = sys.argv[1:]
with Client() as plinth:
    try:
        for piece in plinth.generation.stream_chat(
            model,
            messages=[ChatMessage(role="user", content=question)],
            options=GenerationOptions(sampling=SamplingParams(temperature=0, max_tokens=64)),
            timeout=60,
        ):
            print(piece.text, end="", flush=True)
    except PlinthError as error:
        sys.exit(f"{error.reason}: {error}")
print()
