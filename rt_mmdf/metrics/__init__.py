"""Definitions of localisation metrics, used by every wing."""
