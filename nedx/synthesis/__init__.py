"""Batch jobs: plan, run, status, finalize, verify."""
