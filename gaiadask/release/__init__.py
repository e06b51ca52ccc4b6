"""A data release of Gaia as a value: its column table, its formulas and its column presets."""
