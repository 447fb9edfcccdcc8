"""Options of a super-admin who goes into a tenant, or past its plan: where, and why."""

from typing import Annotated, TypeAlias

from cyclopts import Parameter

from services.cli.commands.options import StateOption, control_of
from services.cli.commands.tenants import id_of
from services.cli.output import CommandFailed, Exit
from services.cli.rest import Control

WhyOption: TypeAlias = Annotated[
    str | None,
    Parameter("--reason", help="A super-admin's: why, 8 to 500 characters; it is recorded."),
]
TenantOption: TypeAlias = Annotated[
    str | None,
    Parameter("--tenant", help="A super-admin's: the tenant to go into, by slug or id."),
]


def control_inside(state: StateOption, tenant: TenantOption, reason: WhyOption) -> Control:
    """Control as `control_of`, in that tenant and for that reason where there is one."""
    control = control_of(state)
    if tenant is not None and reason is None:
        raise CommandFailed("say why you go into it with --reason", status=Exit.USAGE)
    inside = None if tenant is None else id_of(control, tenant)
    return control.because(reason, inside=inside)
