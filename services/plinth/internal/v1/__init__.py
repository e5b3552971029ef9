"""Generated from protos/plinth/internal/v1 by `make protos`. Never edit."""
