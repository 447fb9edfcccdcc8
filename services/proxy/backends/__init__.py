"""The way to tool servers: dialects, connections, child processes."""
