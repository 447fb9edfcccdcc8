"""The control plane: people, agents, servers and policies, and the REST API that changes them."""
