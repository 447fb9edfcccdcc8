"""gRPC plumbing: serving with peer checks and deadlines, dialling, errors with reasons."""
