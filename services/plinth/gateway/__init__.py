"""Plinth's gateway: OpenAI-compatible REST and gRPC APIs, one set of keys and quotas."""
