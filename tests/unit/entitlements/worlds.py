"""The same world twice: as the service's values, and as the naive model's dicts."""

from __future__ import annotations

from random import Random
from typing import Any, Literal

from services.entitlements.choosing import Held
from services.entitlements.effective import Ceiling, Tenant
from services.entitlements.license import License, Limits
from services.entitlements.overrides import Effect, Override
from tests.unit.entitlements.naive import DAY, LADDER, PLAN_GRACE, TABLE

NOW_S = 1_800_000_000
KEYS = tuple(TABLE)


def licence(**said: Any) -> dict[str, Any]:
    """A naive one in force; `said` changes it."""
    plan = said.get("plan", "enterprise")
    return {
        "plan": plan,
        "says": {},
        "iat": NOW_S - DAY,
        "nbf": NOW_S - DAY,
        "exp": NOW_S + 100 * DAY,
        "grace": PLAN_GRACE[plan],
        "since": NOW_S - DAY,
        "revoked": False,
        "id": "a",
        **said,
    }


def held(naive: dict[str, Any], scope: Literal["tenant", "installation"]) -> Held:
    return Held(
        license=License(
            jti=naive["id"],
            customer="A customer",
            key_id="dev",
            issued_at_s=naive["iat"],
            not_before_s=naive["nbf"],
            expires_at_s=naive["exp"],
            grace_s=naive["grace"],
            scope=scope,
            tenant="t" if scope == "tenant" else None,
            plan=naive["plan"],
            features=frozenset(naive["says"].items()),
            limits=Limits(),
            models=(),
            fingerprint=None,
            token_sha256=naive["id"],
        ),
        activated_at_s=naive["since"],
        revoked=naive["revoked"],
    )


def tenant_of(naive: dict[str, Any]) -> Tenant:
    return Tenant(
        plan=naive["plan"],
        plan_expires_at_s=naive["ends"],
        plan_set_at_s=naive["since"],
        licenses=tuple(held(one, "tenant") for one in naive["licences"]),
        overrides=tuple(
            Override(
                seq=place,
                feature=row["key"],
                effect=Effect(row["effect"]),
                starts_at_s=row["starts"],
                ends_at_s=row["ends"],
            )
            for place, row in enumerate(naive["rows"])
        ),
        entitled=frozenset(naive["had"]),
    )


def ceiling_of(naive: dict[str, Any]) -> Ceiling:
    return Ceiling(
        licenses=tuple(held(one, "installation") for one in naive["licences"]),
        development=naive["development"],
    )


def random_world(chance: Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tenant and an installation, with a few of everything around NOW_S."""
    tenant = {
        "plan": chance.choice(LADDER),
        "ends": chance.choice([None, _instant(chance)]),
        "since": _instant(chance),
        "licences": [_licence(chance, name) for name in "ab"[: chance.choice([0, 0, 1, 1, 2])]],
        "rows": [_row(chance) for _ in range(chance.choice([0, 1, 3, 6]))],
        "had": chance.sample(KEYS, chance.choice([0, 0, 5])),
    }
    licences = [_licence(chance, name) for name in "cd"[: chance.choice([0, 1, 1, 2])]]
    return tenant, {"licences": licences, "development": chance.random() < 0.3}


def _instant(chance: Random) -> int:
    """Close to NOW_S, often at one of few instants, so that things meet."""
    return NOW_S + chance.randrange(-40, 40) * DAY + chance.choice([0, 0, 0, -1, 1])


def _licence(chance: Random, name: str) -> dict[str, Any]:
    nbf = _instant(chance)
    says = {key: chance.random() < 0.5 for key in chance.sample(KEYS, chance.choice([0, 3, 6]))}
    return licence(
        plan=chance.choice(LADDER),
        says=says,
        iat=_instant(chance),
        nbf=nbf,
        exp=nbf + chance.randrange(1, 60) * DAY,
        grace=chance.choice([0, 7, 14, 30]) * DAY,
        since=_instant(chance),
        revoked=chance.random() < 0.15,
        id=name,
    )


def _row(chance: Random) -> dict[str, Any]:
    starts = _instant(chance)
    ends = None if chance.random() < 0.5 else starts + chance.randrange(1, 40) * DAY
    return {
        "key": chance.choice(KEYS[:6]),
        "effect": chance.choice(["enable", "enable", "disable", "clear"]),
        "starts": starts,
        "ends": ends,
    }
