"""Zarr in and out: layout, opening, block writing, ledger, verify, pull."""
