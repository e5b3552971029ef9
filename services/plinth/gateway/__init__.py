"""Plinth's front door: OpenAI-compatible REST and gRPC, one set of keys and quotas."""
