"""What the built application guarantees of plans without being asked (entitlements.md 8, E16): each
guarantee is a search for faults that finds none here and finds every one that is planted.

The third and the fifth, over sources, are in tests/unit/test_plans_stay_apart.py, planted there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.control import features
from services.control.api import openapi
from services.control.api.guards import needs
from services.control.api.routers import ROUTERS
from services.control.roles import Role
from services.entitlements.catalog import FEATURE_CATALOG, PLANS, Feature, OnLapse
from tests.integration.control.route_table import CORE, GATED
from tests.integration.control.test_gates import CORE as CORE_RESOURCES
from tests.integration.control.test_gates import WITHOUT_ROUTE, resource

IN_CONTRACT = tuple(
    value.name.removeprefix("FEATURE_").lower()
    for value in wire.Feature.DESCRIPTOR.values
    if value.number
)

# --- 1. enum = catalogue; 17; 3, 7, 7; what becomes of each ------------------------------------


def catalogue_faults(
    catalogue: Sequence[Feature], contract: Iterable[str], known: Iterable[str]
) -> list[str]:
    keys = [feature.key for feature in catalogue]
    plans = [feature.plan for feature in catalogue]
    found = []
    if keys != list(contract):
        found.append("contract")
    if set(keys) != set(known) or len(keys) != len(set(keys)):
        found.append("control")
    if [plans.count(plan.key) for plan in PLANS] != [3, 7, 7] or len(plans) != 17:
        found.append("sums")
    return found + [one.key for one in catalogue if one.on_lapse not in [*OnLapse]]


def test_the_catalogue_is_the_contract_and_what_control_knows() -> None:
    assert [] == catalogue_faults(FEATURE_CATALOG, IN_CONTRACT, features.KEYS)


_FIRST = FEATURE_CATALOG[0]


@pytest.mark.parametrize(
    ("catalogue", "contract", "known", "fault"),
    [
        (FEATURE_CATALOG[1:], IN_CONTRACT, features.KEYS, "contract"),
        (FEATURE_CATALOG, (*IN_CONTRACT, "time_travel"), features.KEYS, "contract"),
        (FEATURE_CATALOG, IN_CONTRACT, features.KEYS - {"saml_sso"}, "control"),
        ((*FEATURE_CATALOG, _FIRST), IN_CONTRACT, features.KEYS, "control"),
        (
            (replace(_FIRST, plan="enterprise"), *FEATURE_CATALOG[1:]),
            IN_CONTRACT,
            features.KEYS,
            "sums",
        ),
        (
            (replace(_FIRST, on_lapse=None), *FEATURE_CATALOG[1:]),  # type: ignore[arg-type]  # planted
            IN_CONTRACT,
            features.KEYS,
            "community_library",
        ),
    ],
    ids=["one less", "one more", "unknown to control", "twice", "another plan", "no lapse"],
)
def test_a_catalogue_that_differs_is_seen(
    catalogue: tuple[Feature, ...], contract: tuple[str, ...], known: frozenset[str], fault: str
) -> None:
    assert fault in catalogue_faults(catalogue, contract, known)


# --- 2. every gate where it belongs; every other route is declared -----------------------------


def route_faults(routers: Sequence[APIRouter], without: frozenset[str]) -> list[str]:
    found, gated = [], set[str]()
    for route in openapi.api_routes(routers):
        guard = openapi.guard_of(route)
        gated |= {guard.feature} if guard.feature else set()
        named = {f"{method} {route.path_format}" for method in route.methods or ()}
        under = {
            feature
            for feature, addresses in GATED.items()
            for address in addresses
            if re.match(rf"/api/v1/{address}(?![a-z-])", route.path_format)
        }
        undeclared = not under and resource(route.path) not in CORE_RESOURCES
        if not named & CORE and ({guard.feature} - {None} != under or undeclared):
            found.append(route.path_format)
    return found + sorted(features.KEYS - gated - without) + sorted(gated & without)


def planted(path: str, feature: str | None) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    router.add_api_route(path, nothing, dependencies=[needs(Role.VIEWER, feature=feature)])
    return router


async def nothing() -> None:
    """Answers nothing."""


def test_each_gate_is_where_it_belongs_and_every_other_route_is_declared() -> None:
    assert [] == route_faults(ROUTERS, WITHOUT_ROUTE)


@pytest.mark.parametrize(
    ("path", "feature", "fault"),
    [
        ("/context-gate/planted", None, "/api/v1/context-gate/planted"),
        ("/context-gate/planted", "blast_radius", "/api/v1/context-gate/planted"),
        ("/agents/planted", "context_gate", "/api/v1/agents/planted"),
        ("/planted", None, "/api/v1/planted"),
        ("/webhooks", None, "/api/v1/webhooks"),
        ("/costs", "cost_attribution", "cost_attribution"),
    ],
    ids=["ungated", "another gate", "gated core", "undeclared", "a feature's", "built meanwhile"],
)
def test_a_route_with_the_wrong_gate_is_seen(path: str, feature: str | None, fault: str) -> None:
    assert fault == route_faults([*ROUTERS, planted(path, feature)], WITHOUT_ROUTE)[0]


def test_a_feature_that_gates_nothing_any_more_is_seen() -> None:
    assert ["blast_radius"] == route_faults(ROUTERS, WITHOUT_ROUTE - {"blast_radius"})


# --- 4. what is described is what is enforced ---------------------------------------------------


@cache
def described() -> dict[str, Any]:
    """Of the application as it is."""
    app = FastAPI(title="Behavry", version="1")
    for router in ROUTERS:
        app.include_router(router)
    return openapi.describe(app, ROUTERS)


def description_faults(document: dict[str, Any], routers: Sequence[APIRouter]) -> list[str]:
    enforced = {
        (route.path_format, method.lower()): openapi.guard_of(route).feature
        for route in openapi.api_routes(routers)
        if route.include_in_schema
        for method in route.methods or ()
    }
    said = {
        (path, method): one.get("x-required-feature")
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }
    return sorted(
        path
        for path, method in enforced.keys() | said.keys()
        if enforced.get((path, method), "") != said.get((path, method), "")
    )


SUMMARY = "/api/v1/context-gate/summary"


def test_the_description_says_of_each_route_what_its_guard_enforces() -> None:
    assert [] == description_faults(described(), ROUTERS)


def _forget(paths: dict[str, Any]) -> None:
    del paths[SUMMARY]["get"]["x-required-feature"]


def _rename(paths: dict[str, Any]) -> None:
    paths[SUMMARY]["get"]["x-required-feature"] = "blast_radius"


def _drop(paths: dict[str, Any]) -> None:
    del paths[SUMMARY]


def _invent(paths: dict[str, Any]) -> None:
    paths[SUMMARY]["put"] = {"x-required-feature": "context_gate"}


@pytest.mark.parametrize("plant", [_forget, _rename, _drop, _invent])
def test_a_description_that_differs_is_seen(plant: Callable[[dict[str, Any]], None]) -> None:
    document = copy.deepcopy(described())
    plant(document["paths"])

    assert [SUMMARY] == description_faults(document, ROUTERS)


def test_a_guard_that_nobody_described_is_seen() -> None:
    more = [*ROUTERS, planted("/context-gate/planted", "context_gate")]

    assert ["/api/v1/context-gate/planted"] == description_faults(described(), more)
    assert all(isinstance(route, APIRoute) for router in more for route in router.routes)
