"""Simulated cortex and its images, with their truth."""
