"""gRPC servers and clients that every stage shares."""
