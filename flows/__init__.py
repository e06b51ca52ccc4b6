"""Prefect, and only here: the flow `gaia` and its deployments."""
