"""From a request to its answers: which model and revision, which shards, text to ids and back."""
