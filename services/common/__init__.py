"""Plumbing that two services or more need. Knows nothing of what any of them decides."""
