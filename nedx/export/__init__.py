"""Responses in the forms that other tools read: MNE, NIfTI, GIFTI, BrainIO, torch, pandas."""
