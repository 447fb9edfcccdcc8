"""Bundles for engine tests: made by the product's own builder, signed with a key of the test."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import regorus
from joserfc.jwk import ECKey

from services.authorizer.engine.protocol import EngineBundle, TenantPolicies
from services.common.ids import PlaneId, TenantId
from services.common.rego import references, tree
from services.common.rego.guards import guards_of
from services.common.rego.names import PolicyRef, base_policies, policy_package
from services.control import bundles, desired_state

PLANE = PlaneId("dp-test")
ENVIRONMENT = "test"
SCOPE = f"behavry/{ENVIRONMENT}/{PLANE}"
KID = "bundle-1"


@dataclass(frozen=True, slots=True)
class Policy:
    """`body` is the Rego below the package line."""

    key: str
    body: str
    state: str = "enforce"


@dataclass(frozen=True, slots=True)
class Made:
    """An offerable bundle, what each tenant's policies read, and the built archive."""

    bundle: EngineBundle
    reads: dict[str, tuple[tuple[str, ...], ...]]
    state: dict[str, Any] = field(repr=False)


def signing_key() -> ECKey:
    return ECKey.generate_key("P-256", {"kid": KID})


def made(tenants: Mapping[str, Sequence[Policy]], *, serial: int, key: ECKey) -> Made:
    """Unlike a save, this checks nothing: the tests also need policies that control refuses."""
    contents = [_content(TenantId(tenant), policies) for tenant, policies in tenants.items()]
    content = bundles.Content(
        plane_id=PLANE,
        environment=ENVIRONMENT,
        tenants=contents,
        shipped=desired_state.shipped_modules(),
    )
    built = bundles.build(content, serial=serial, created_s=1_770_000_000, key=key, kid=KID)
    modules = dict(content.shipped)
    for part in contents:
        modules |= part.modules
    offered = EngineBundle(
        revision=built.revision,
        etag=f"sha256:{hashlib.sha256(built.archive).hexdigest()}",
        archive=built.archive,
        modules=modules,
        tenants={
            tenant: TenantPolicies(policies=(*base_policies(), *_refs(tenant, policies)))
            for tenant, policies in tenants.items()
        },
    )
    reads: dict[str, tuple[tuple[str, ...], ...]] = {
        part.id: tuple(tuple(path) for path in part.state["reads"]) for part in contents
    }
    return Made(offered, reads, {part.id: part.state for part in contents})


def source(tenant: str, policy: Policy) -> str:
    return f"package {policy_package(tenant, policy.key)}\n\n{policy.body}\n"


def _refs(tenant: str, policies: Sequence[Policy]) -> list[PolicyRef]:
    return [
        PolicyRef(
            key=policy.key,
            package=policy_package(tenant, policy.key),
            state="shadow" if policy.state == "shadow" else "enforce",
        )
        for policy in policies
    ]


def _content(tenant: TenantId, policies: Sequence[Policy]) -> bundles.TenantContent:
    rows = desired_state.TenantRows(
        id=tenant,
        slug="default",
        status="active",
        classes={},
        roles={},
        agents={},
        revoked_sessions={},
        servers={},
        tools={},
        policies=_rows(tenant, policies),
    )
    return desired_state.tenant_content(rows, {})


def _rows(tenant: TenantId, policies: Sequence[Policy]) -> list[desired_state.PolicyRow]:
    sources = {policy.key: source(tenant, policy) for policy in policies}
    modules = {key: _parsed(key, text) for key, text in sources.items()}
    return [
        desired_state.PolicyRow(
            key=policy.key,
            version=1,
            state=policy.state,
            source=sources[policy.key],
            reads=tuple(
                references.reads_of(
                    references.Program([modules[policy.key]]),
                    [(*modules[policy.key].package, "verdicts")],
                )
            ),
            guards=guards_of(modules[policy.key]),
        )
        for policy in policies
    ]


@cache
def _parsed(key: str, text: str) -> tree.Module:
    """In this process: a test's own policies do not crash the parser, and a child costs 0.1 s."""
    engine = regorus.Engine()
    engine.add_policy(key, text)
    (module,) = tree.modules(json.loads(engine.get_ast_as_json()))
    return module
