"""Asks a policy engine, and takes nothing but a well-formed answer of the asked revision."""
