"""Generated from protos/plinth/v1 by `make protos`. Never edit."""
