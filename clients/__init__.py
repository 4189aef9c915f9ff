"""The Python client (empty so far)."""
