"""The package names and rules that builder, engines and checks agree on (core.md 4).

Per tenant one generated package `behavry.authz.t<hex>` with the rules `verdicts`, `decision` and
`batch` (and `shadow`, `shadow_batch` where a policy is in shadow).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

Path = tuple[str, ...]

#: Shipped with the product; each allows or refuses by itself, tenants add theirs.
BASE_POLICIES: Final[tuple[str, ...]] = ("grants",)

POLICY_KEY: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
LIBRARY: Final[Path] = ("behavry", "lib")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRef:
    """A policy that takes part in a tenant's decisions. `package` is dotted, without `data.`."""

    key: str
    package: str
    state: Literal["enforce", "shadow"] = "enforce"

    @property
    def entry(self) -> str:
        return f"data.{self.package}.verdicts"


def tenant_segment(tenant: str) -> str:
    return f"t{UUID(tenant).hex}"


def authz_package(tenant: str) -> str:
    return f"behavry.authz.{tenant_segment(tenant)}"


def policy_package(tenant: str, key: str) -> str:
    if not POLICY_KEY.fullmatch(key):
        raise ValueError(f"policy keys match {POLICY_KEY.pattern}")
    return f"behavry.tenant.{tenant_segment(tenant)}.{key}"


def base_policies() -> tuple[PolicyRef, ...]:
    return tuple(PolicyRef(key=key, package=f"behavry.base.{key}") for key in BASE_POLICIES)
