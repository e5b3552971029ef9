"""The gRPC services that the gateway itself answers."""
