"""LoRA: the maps that take one, merging, and PEFT's folders."""
