"""Worker threads, mailboxes, telemetry: the only place where threads are made."""
