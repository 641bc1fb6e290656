"""The data types, ring buffer, configuration base and errors that every other layer shares."""
