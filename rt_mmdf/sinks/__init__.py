"""Where estimates go: LSL streams, files."""
