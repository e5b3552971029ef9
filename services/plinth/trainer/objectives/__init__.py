"""One file for each objective: how a batch is made from tokens, and what its loss is."""
