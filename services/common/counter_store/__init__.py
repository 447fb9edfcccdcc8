"""Counts that the processes of one plane share, in memory or in Valkey."""
