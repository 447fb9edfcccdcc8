"""The proxies of one plane among each other: what an agent tells one of them, and another holds."""
