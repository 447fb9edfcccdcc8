"""What agents are shown of the tools that there are, and what that costs them to read.

Approving and hiding are everybody's (tools.py); this view over all servers is the Context Gate's.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter

from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer
from services.control.roles import Role
from services.control.store import tools

router = APIRouter(prefix="/api/v1/context-gate", tags=["context-gate"])

#: JSON in English, by the tokenizers that models use today: an estimate, and called so.
BYTES_PER_TOKEN: Final = 4


class Weight(Answer):
    """How many tools are in each state, and what their definitions weigh."""

    approved: int
    hidden: int
    unclassified: int
    changed: int
    #: Of all definitions, and of those that agents are shown.
    estimated_tokens: int
    shown_estimated_tokens: int


class ServerWeight(Weight):
    server: str


class Summary(Answer):
    servers: list[ServerWeight]
    total: Weight


@router.get("/summary")
async def get_context_gate_summary(
    call: Annotated[Call, needs(Role.VIEWER, feature="context_gate")],
) -> Summary:
    async with call.read() as connection:
        rows = await tools.weights(connection, bytes_per_token=BYTES_PER_TOKEN)
    servers = [ServerWeight(**row) for row in rows]
    total = {name: sum(getattr(one, name) for one in servers) for name in Weight.model_fields}
    return Summary(servers=servers, total=Weight(**total))
