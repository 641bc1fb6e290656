"""The commands: arguments in, a session or a report out; no logic here."""
