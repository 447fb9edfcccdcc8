"""Logs, counters and spans: names, and how they leave the process."""
