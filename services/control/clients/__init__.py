"""Control's calls to other services, as our own types: audit's reader and entitlements.

Every unary call carries a deadline. An error leaves here as the BehavryError that the other side
raised, or as DEPENDENCY_UNAVAILABLE.
"""
