"""Where estimates and health go: LSL streams, files, figures."""
