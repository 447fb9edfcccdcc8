"""Control's tables: SQL constants and the functions that run them, one file per resource.

Functions take a connection whose transaction names the tenant (`tenant_tx`); those that find a
credential before a tenant is known run on a plain one and use the schema's look-up functions.
Times come in as arguments, so that tests move them.
"""
