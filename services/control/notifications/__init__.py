"""Tells people outside that something waits for them: what, in which form, and how it goes out."""
