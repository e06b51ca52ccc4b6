"""Prefect, and only here: the flow `gaia`, one deployment for each thing a user runs."""
