"""Stars from files."""
