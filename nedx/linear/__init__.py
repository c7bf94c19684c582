"""Exact linear solvers."""
