"""Where agents come in."""
