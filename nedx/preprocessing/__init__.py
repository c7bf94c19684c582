"""Preparing recordings: epochs, whitening, z-scores, repetitions, and published recipes."""
