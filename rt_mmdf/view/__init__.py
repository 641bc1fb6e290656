"""The brain view: a process of its own that listens to the engine's streams and never slows the engine."""
