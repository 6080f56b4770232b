"""The `gruppo` command: one small module per subcommand, and what they share. Not for import in scripts."""
