"""`behavry-mcp-stdio`: stands in for the gateway where an MCP client starts programs instead of
dialling addresses. It speaks to the gateway alone, never to a tool server.
"""
