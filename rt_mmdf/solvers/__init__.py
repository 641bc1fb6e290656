"""From whitened sensors to sources."""
