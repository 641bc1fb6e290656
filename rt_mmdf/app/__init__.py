"""Sessions: stages and workers wired together."""
