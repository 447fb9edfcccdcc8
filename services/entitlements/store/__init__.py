"""Plans, overrides and licences in PostgreSQL: what is read of many tenants, and each row written.

A change raises the installation's revision first, in its own transaction, so that writers come one
after the other.
"""
