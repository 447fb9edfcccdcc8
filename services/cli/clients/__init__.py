"""MCP clients as `behavry connect` and `behavry doctor` know them: where their configuration lies,
which form it has, how one entry is put in or taken out without touching the rest.
"""
