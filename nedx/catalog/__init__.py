"""Entries, search, resolving ids and URLs."""
