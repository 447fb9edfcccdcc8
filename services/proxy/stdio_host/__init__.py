"""The one process that hosts stdio tool servers for several workers or replicas of the proxy."""
