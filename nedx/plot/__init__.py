"""Figures; each function returns matplotlib Axes."""
