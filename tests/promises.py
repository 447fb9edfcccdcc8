"""What the product promises, by name, and the decorator by which a test says which one it shows.

A promise that no test carries fails, and so does a test that carries an unknown one
(tests/unit/test_promises.py). A name is `area:what-holds`.
"""

from typing import Final

import pytest

PROMISES: Final[dict[str, str]] = {
    "audit:nobody-rewrites": "No role of a service can change or remove what is recorded.",
    "audit:stored-once": "A record is stored once, whatever is lost, resent or put back.",
    "audit:tampering-named": "A manipulated chain is named by code and first position.",
    "audit:tenants-apart": "Without a tenant a role of audit sees and writes nothing.",
    "code:broad-handlers": "Only the outermost handlers and the supervisor catch everything.",
    "code:exceptions-explained": "A linter is silenced by rule and with a reason, or not at all.",
    "docs:walk-is-true": "The walk through one call names files that exist.",
    "imports:contracts-hold": "Services share contracts in protos and nothing else.",
    "imports:violation-caught": "An import that crosses a border is named before it is merged.",
    "tenancy:unset-sees-nothing": "Without a tenant no service sees or writes a tenant's row.",
}


def promise(name: str) -> pytest.MarkDecorator:
    """Marks a test as showing the named promise; an unknown name fails at import."""
    if name not in PROMISES:
        raise KeyError(f"no such promise: {name} (tests/promises.py)")
    return pytest.mark.promise(name)
