"""Stars from a TAP service."""
