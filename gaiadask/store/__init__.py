"""A store: files that are whole or absent, leases, file names, the manifest of a run, arrays with their card."""
