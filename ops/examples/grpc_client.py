"""Chats by gRPC: python grpc_client.py HOST:PORT KEY MODEL QUESTION"""

import sys

import grpc

from plinth.v1 import chat_pb2, generation_pb2, generation_pb2_grpc, sampling_pb2

if len(sys.argv) != 5:
    sys.exit(__doc__)
address, key, model, question = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = generation_pb2.StreamChatRequest(
        model=model, messages=[chat_pb2.ChatMessage(role="user", content=question)]
    )
    request.options.sampling.MergeFrom(sampling_pb2.SamplingParams(temperature=0, max_tokens=64))
    with_key = (("authorization", f"Bearer {key}"),)
    for piece in stub.StreamChat(request, metadata=with_key, timeout=60):
        print(piece.text, end="", flush=True)
print()
