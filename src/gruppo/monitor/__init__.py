"""What a run leaves behind, and what it shows while it runs. The trainer writes; every reader works on the files."""
