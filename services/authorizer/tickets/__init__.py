"""Calls that wait for a person: their tickets, and the stores that outlive a crash."""
