"""GGUF files: their metadata, tensors and vocabularies."""
