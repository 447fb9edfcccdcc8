"""The proxy's calls to other services."""
