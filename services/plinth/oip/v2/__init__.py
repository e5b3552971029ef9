"""Generated from protos/plinth/oip/v2 by `make protos`. Never edit."""
