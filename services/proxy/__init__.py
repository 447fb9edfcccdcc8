"""The data plane's door: speaks MCP with agents and tool servers, asks the authorizer, records."""
