"""Accuracy and noise ceilings."""
