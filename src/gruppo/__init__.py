"""gruppo: GRPO post-training of language models."""
