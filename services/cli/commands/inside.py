"""Options of a super-admin who goes into a tenant, or past its plan: where, and why."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    tenant: TenantOption = None
    reason: WhyOption = None
    state: StateOption = None

    def control(self) -> Control:
        """Control as `control_of`, in that tenant and for that reason where there is one."""
        control = control_of(self.state)
        if self.tenant is not None and self.reason is None:
            raise CommandFailed("say why you go into it with --reason", status=Exit.USAGE)
        inside = None if self.tenant is None else id_of(control, self.tenant)
        return control.because(self.reason, inside=inside)


#: A command's own tenant, where nothing is said.
OWN = Inside()
InsideOptions: TypeAlias = Annotated[Inside, Parameter(name="*")]
