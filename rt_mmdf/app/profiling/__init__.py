"""`rt-mmdf profile`: where the time of a hop goes, measured on the real chain or read from a running engine."""
