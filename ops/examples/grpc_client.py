"""Chats by gRPC: python grpc_client.py HOST:PORT KEY MODEL QUESTION"""

import sys

import grpc

from plinth.v1 import chat_pb2, generation_pb2, generation_pb2_grpc, sampling_pb2

if len(sys.argv) != 5:
    sys.exit(__doc__)
address, key, model, question = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = generation_pb2.ChatRequest(
        model=model,
        messages=[chat_pb2.ChatMessage(role="user", content=question)],
        sampling=sampling_pb2.SamplingParams(temperature=0, max_tokens=64),
    )
    for piece in stub.Chat(request, metadata=(("authorization", f"Bearer {key}"),), timeout=60):
        print(piece.text, end="", flush=True)
print()
