"""Where work runs: Dask clients, workers that map and reduce over partitions, and training ranks."""
