"""Ranks: who am I, what do the others have. Nothing in here knows about prompts, rewards or losses."""
