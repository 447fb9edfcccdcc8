"""What the specification says of each route of the REST API: who may call it, what it gates.

Written by hand from control.md 2.2 and 4 and entitlements.md 1, 2 and 7, and read by the tests of
the order of refusals (test_order.py). It is never made from the application: a route that is in one
and not in the other fails there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

What = Literal["read", "write", "remove"]
Level = Literal["nobody", "viewer", "analyst", "policy_author", "admin", "super_admin"]

#: control.md 4: a minimum each.
LEVELS: Final[dict[str, int]] = {"viewer": 1, "analyst": 2, "policy_author": 3, "admin": 4}
#: Of a person alone, or of nobody: no super-admin's path leads there.
OUTSIDE: Final = frozenset({"auth", "me", "tenants", "enroll", "policy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`human`: no machine; `fresh`: people prove who they are within 5 minutes before; `lasts`: it
    gives rights that outlast a visit, so nobody from elsewhere does it; `keyed`: an Idempotency-Key
    is due; `reads`: it has a body; `ends`: what it ends the tests begin again.
    """

    method: str
    path: str
    level: Level
    human: bool = False
    fresh: bool = False
    lasts: bool = False
    keyed: bool = False
    feature: str = ""
    removes: bool = False
    reads: bool = False
    ends: bool = False

    @property
    def what(self) -> What:
        """entitlements.md 8: read or write follows from the method."""
        if self.removes:
            return "remove"
        return "read" if self.method == "GET" else "write"

    @property
    def can_be_inside(self) -> bool:
        """Whether a super-admin reaches it as `/api/v1/tenants/{id}/...`."""
        parts = self.path.removeprefix("/api/v1/").split("/")
        first = parts[0].partition(":")[0]
        return self.path.startswith("/api/v1/") and first not in OUTSIDE

    @property
    def names_tenant(self) -> bool:
        return "{tenant_id}" in self.path

    @property
    def of_all_tenants(self) -> bool:
        """Whoever runs the installation sees each tenant there."""
        return self.key == "GET /api/v1/tenants"

    @property
    def key(self) -> str:
        return f"{self.method} {self.path}"


#: A line: method, path under /api/v1 (or the whole one), least level, and its marks.
_TABLE: Final = """
POST   auth/login                                   nobody         reads
POST   auth/second-factor                           nobody         reads
POST   auth/step-up:begin                           viewer         human ends
POST   auth/step-up                                 viewer         human reads ends
POST   auth/logout                                  viewer         ends
POST   auth/password:forgot                         nobody         reads
POST   auth/password:reset                          nobody         reads
GET    me                                           viewer
GET    me/sessions                                  viewer         human
DELETE me/sessions/{session_id}                     viewer         human
POST   me/sessions:end-others                       viewer         human ends
POST   me/password                                  viewer         human fresh reads
GET    me/mfa                                       viewer         human
POST   me/mfa/totp                                  viewer         human fresh reads
POST   me/mfa/totp/{factor_id}:confirm              viewer         human fresh reads
POST   me/mfa/passkeys:begin                        viewer         human fresh
POST   me/mfa/passkeys                              viewer         human fresh reads
POST   me/mfa/recovery-codes                        viewer         human fresh
DELETE me/mfa/{factor_id}                           viewer         human fresh

GET    users                                        admin          team_management
GET    users/{user_id}                              admin          team_management
PATCH  users/{user_id}                              admin          team_management reads
POST   users/{user_id}:deactivate                   admin          team_management removes
POST   users/{user_id}:reactivate                   admin          team_management
POST   users/{user_id}:reset-password               admin          team_management human fresh
DELETE users/{user_id}                              admin          team_management removes
GET    invites                                      admin          team_management
POST   invites                                      admin          team_management keyed reads
DELETE invites/{invite_id}                          admin          team_management removes
POST   invites:accept                               nobody         reads
GET    api-keys                                     admin
POST   api-keys                                     admin          fresh lasts reads
POST   api-keys/{key_id}:rotate                     admin          fresh lasts reads
DELETE api-keys/{key_id}                            admin

GET    auth/login                                   nobody
GET    auth/callback                                nobody
POST   auth/backchannel-logout                      nobody
POST   auth/device/authorize                        nobody
POST   auth/device/token                            nobody
GET    settings/auth                                admin
PUT    settings/auth                                admin          human fresh reads
POST   settings/auth:test                           admin          human fresh reads
POST   tenants/{tenant_id}/auth:approve             super_admin    fresh

POST   auth/token                                   nobody
POST   enroll                                       nobody         reads
POST   enrollment-tokens                            admin          reads
GET    agents                                       viewer
POST   agents                                       admin          reads
GET    agents/{agent_id}                            viewer
POST   agents/{agent_id}:suspend                    analyst
POST   agents/{agent_id}:resume                     admin
POST   agents/{agent_id}:revoke                     admin
POST   agents/{agent_id}:rotate                     admin
DELETE agents/{agent_id}/secrets/{secret_id}        admin
GET    agents/{agent_id}/restrictions               viewer
POST   agents/{agent_id}:restrict                   analyst        reads
POST   agents/{agent_id}:unrestrict                 admin          reads
GET    kill-switch                                  viewer
GET    kill-switch/{switch_id}                      viewer
POST   kill-switch                                  admin          reads
POST   kill-switch/{switch_id}:release              admin          human fresh reads
GET    roles                                        viewer
GET    roles/{name}                                 viewer
PUT    roles/{name}                                 admin          reads

GET    settings/limits                              admin
PUT    settings/limits                              admin          reads
GET    settings/notifications                       admin
GET    settings/notifications/health                viewer
POST   settings/notifications                       admin          reads
GET    settings/notifications/{destination_id}      admin
PATCH  settings/notifications/{destination_id}      admin          reads
DELETE settings/notifications/{destination_id}      admin
POST   settings/notifications/{destination_id}:test admin
GET    settings/notifications/{destination_id}/deliveries          admin
POST   settings/notifications/deliveries/{delivery_id}:redeliver   admin  keyed

GET    escalations                                  viewer
GET    escalations/{escalation_id}                  viewer
POST   escalations/{escalation_id}:approve          analyst        human keyed reads
POST   escalations/{escalation_id}:deny             analyst        human keyed reads
POST   escalations/{escalation_id}:revoke           analyst        human reads
POST   escalations/{escalation_id}:cancel           analyst        human reads

GET    servers                                      viewer
POST   servers                                      policy_author  reads
GET    servers/{server}                             viewer
PATCH  servers/{server}                             policy_author  reads
DELETE servers/{server}                             policy_author
GET    servers/{server}/tools                       viewer
PUT    servers/{server}/tools/{tool}                policy_author  reads
POST   servers/{server}/tools:classify              policy_author  reads
GET    context-gate/summary                         viewer         context_gate
GET    policies                                     viewer
POST   policies                                     policy_author  reads
POST   policies:check                               policy_author  reads
GET    policies/{policy_id}                         viewer
PUT    policies/{policy_id}                         policy_author  reads
GET    policies/{policy_id}/versions                viewer
POST   policies/{policy_id}:enforce                 policy_author  keyed fresh
POST   policies/{policy_id}:shadow                  policy_author  keyed
POST   policies/{policy_id}:retire                  policy_author
POST   policies/{policy_id}:rollback                policy_author  keyed fresh reads
GET    policy/bundle                                nobody

GET    traces                                       viewer
GET    traces/{trace_id}                            viewer
GET    audit/heads                                  viewer
POST   audit/verify                                 viewer         reads
GET    jobs/{job_id}                                viewer

GET    license                                      viewer
GET    plan-features                                viewer
POST   license/activate                             admin          keyed reads
GET    tenants                                      super_admin
POST   tenants                                      super_admin    reads
GET    tenants/{tenant_id}                          super_admin
POST   tenants/{tenant_id}:suspend                  super_admin    ends
POST   tenants/{tenant_id}:resume                   super_admin    ends
GET    tenants/{tenant_id}/features                 super_admin
POST   tenants/{tenant_id}/features                 super_admin    reads
PUT    tenants/{tenant_id}/plan                     super_admin    reads

GET    /.well-known/jwks.json                       nobody
GET    /.well-known/oauth-authorization-server      nobody
GET    /healthz                                     nobody
GET    /readyz                                      nobody
GET    /                                            nobody
GET    /reference                                   nobody
GET    /errors/{code}                               nobody
GET    /style.css                                   nobody
GET    /join                                        nobody
POST   /join                                        nobody
GET    /reset                                       nobody
POST   /reset                                       nobody
GET    /device                                      nobody
GET    /device/{user_code}                          nobody
POST   /device/{user_code}                          nobody
POST   /device/{user_code}/sign-in                  nobody
POST   /device/{user_code}/second-factor            nobody
POST   /device/{user_code}/sign-out                 nobody
GET    /approve/style.css                           nobody
GET    /approve/page.js                             nobody
GET    /approve/{escalation_id}                     nobody
POST   /approve/{escalation_id}                     nobody
POST   /approve/{escalation_id}/sign-in             nobody
POST   /approve/{escalation_id}/second-factor       nobody
POST   /approve/{escalation_id}/sign-out            nobody
"""

#: entitlements.md 1: the plans by rank, and the least one of each feature.
PLANS: Final = ("trial", "professional", "enterprise")
FEATURES: Final[dict[str, str]] = {
    "community_library": "trial", "custom_dlp_patterns": "trial", "behavioral_baselines": "trial",
    "inbound_rules": "professional", "context_gate": "professional",
    "blast_radius": "professional", "cost_attribution": "professional",
    "siem_webhooks": "professional", "discovery_connectors": "professional",
    "human_governance": "professional", "delegation_chains": "enterprise",
    "workflow_governance": "enterprise", "data_protection": "enterprise",
    "policy_writer_ai": "enterprise", "compliance_modules": "enterprise",
    "saml_sso": "enterprise", "team_management": "enterprise",
}  # fmt: skip
#: entitlements.md 2, of the routes that there are: what each mode lets through.
MODES: Final[dict[str, set[What]]] = {
    "on": {"read", "write", "remove"},
    "frozen": {"read", "remove"},
    "tightened": {"read", "remove"},
    "kept": {"read", "remove"},
    "stopped": {"read", "remove"},
    "off": set(),
}
#: The addresses of features (entitlements.md 1), under /api/v1, by their beginning.
GATED: Final[dict[str, tuple[str, ...]]] = {
    "community_library": ("library",),
    "custom_dlp_patterns": ("dlp-patterns",),
    "behavioral_baselines": ("baselines",),
    "inbound_rules": ("inbound-rules",),
    "context_gate": ("context-gate",),
    "blast_radius": ("limits/blast-radius",),
    "cost_attribution": ("costs", "prices", "budgets"),
    "siem_webhooks": ("siem-destinations", "webhooks"),
    "discovery_connectors": ("discovery",),
    "human_governance": ("human-sessions", "human-destinations"),
    "delegation_chains": ("delegations",),
    "workflow_governance": ("workflows", "workflow-sessions"),
    "data_protection": ("settings/data-protection",),
    "policy_writer_ai": ("policy-writer",),
    "compliance_modules": ("compliance",),
    "saml_sso": ("auth/saml",),
    "team_management": ("users", "invites"),
}
#: Under a feature's address, and nevertheless of everybody: who accepts has no plan yet.
CORE: Final = frozenset({"POST /api/v1/invites:accept"})


def _rule(line: str) -> Rule:
    method, path, level, *marks = line.split()
    features = [mark for mark in marks if mark in FEATURES]
    known = {"human", "fresh", "lasts", "keyed", "removes", "reads", "ends"}
    unknown = set(marks) - known - set(features)
    if unknown or (level not in LEVELS and level not in {"nobody", "super_admin"}):
        raise ValueError(line)
    return Rule(
        method=method,
        path=path if path.startswith("/") else f"/api/v1/{path}",
        level=level,  # type: ignore[arg-type]  # one of them, just seen
        feature="".join(features),
        human="human" in marks,
        fresh="fresh" in marks,
        lasts="lasts" in marks,
        keyed="keyed" in marks,
        removes="removes" in marks,
        reads="reads" in marks,
        ends="ends" in marks,
    )


RULES: Final = tuple(_rule(line) for line in _TABLE.splitlines() if line.strip())
