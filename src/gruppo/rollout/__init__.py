"""Engines that complete prompts with the current policy. Import from the modules: nothing is re-exported here."""
