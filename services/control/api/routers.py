"""Every resource of the API. A new one is a line here."""

from __future__ import annotations

from typing import Final

from services.control.api import (
    agents,
    api_keys,
    approval_page,
    audit,
    auth,
    bundle,
    enrollment,
    escalations,
    health,
    home,
    jobs,
    kill_switch,
    limit_settings,
    notifications,
    plan,
    policies,
    restrictions,
    roles,
    servers,
    token,
    tools,
    traces,
    well_known,
)

ROUTERS: Final = (
    auth.router,
    api_keys.router,
    token.router,
    enrollment.router,
    agents.router,
    restrictions.router,
    kill_switch.router,
    limit_settings.router,
    notifications.router,
    escalations.router,
    approval_page.router,
    roles.router,
    tools.router,
    servers.router,
    policies.router,
    bundle.router,
    traces.router,
    audit.router,
    jobs.router,
    plan.router,
    well_known.router,
    health.router,
    home.router,
)
