"""From the wire to blocks in SI units, and replay: from a recording to the wire."""
