"""What may be said of a tool server, as options, and the body that says it to control.

Decides only what a terminal needs: one option per field, and that a secret is a reference before
anything goes out. What may go together is control's to judge.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from services.cli.output import CommandFailed, Exit

KINDS = ("client_credentials", "jwt_bearer", "token_exchange", "mtls")
#: Fields of a credential whose value is a reference, never the secret itself.
REFERENCES = frozenset({"value", "client_secret", "key", "certificate", "token_ca"})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """`None` is what nobody said."""

    url: Annotated[
        list[str] | None, Parameter("--url", help="Where it listens; up to eight of the same.")
    ] = None
    transport: Annotated[
        Literal["http", "sse"] | None,
        Parameter("--transport", help="http: Streamable HTTP; sse: HTTP+SSE of 2024-11-05."),
    ] = None
    stdio: Annotated[
        str | None,
        Parameter("--stdio", help="A program of stdio.toml in the state directory, by name."),
    ] = None
    share: Annotated[
        Literal["agent", "server"] | None,
        Parameter("--share", help="Each agent its own program, or one for all (stateless ones)."),
    ] = None
    domain: Annotated[
        str | None,
        Parameter(
            "--domain", help="What permissions call it (`domain:read`); the slug unless said."
        ),
    ] = None
    trust: Annotated[
        Literal["trusted", "untrusted"] | None,
        Parameter("--trust", help="How far its answers are trusted; untrusted unless said."),
    ] = None
    era: Annotated[
        Literal["auto", "modern", "legacy"] | None,
        Parameter("--era", help="Which MCP it speaks; found out unless said."),
    ] = None
    case_fold: Annotated[
        bool | None,
        Parameter("--case-fold", help="Its names differ by more than case, or do not."),
    ] = None
    credential: Annotated[
        str | None,
        Parameter(
            "--credential",
            help="HEADER=secret://NAME: a header of each request, its value from a secret's file; "
            f"none; or {', '.join(KINDS)} with --credential-field.",
        ),
    ] = None
    credential_field: Annotated[
        list[str] | None,
        Parameter(
            "--credential-field",
            negative=(),
            help="NAME=VALUE of that kind: token_url, client_id, client_secret, scope, key, "
            "certificate, claims.NAME ... Secrets are secret://NAME.",
        ),
    ] = None
    header: Annotated[
        list[str] | None, Parameter("--header", help="NAME=VALUE sent with each request.")
    ] = None
    ca: Annotated[
        str | None,
        Parameter(
            "--ca", help="secret://NAME: a PEM file of authorities to trust alone; none: no such."
        ),
    ] = None
    first_byte: Annotated[
        int | None,
        Parameter("--first-byte", help="Seconds until its answer must begin, 1 to 600; 120."),
    ] = None
    elicitation_form: Annotated[
        bool | None,
        Parameter("--elicitation-form", help="It may ask users to fill in a form; yes."),
    ] = None
    elicitation_host: Annotated[
        list[str] | None,
        Parameter("--elicitation-host", help="A host to which it may send users; none."),
    ] = None
    sampling: Annotated[
        bool | None, Parameter("--sampling", help="It may ask agents' models; no.")
    ] = None
    roots: Annotated[
        bool | None, Parameter("--roots", help="It may ask for agents' directories; no.")
    ] = None
    extension: Annotated[
        list[str] | None,
        Parameter("--extension", help="An extension's id, io.modelcontextprotocol/tasks; none."),
    ] = None

    def body(self) -> dict[str, Any]:
        """What was said. Raises CommandFailed."""
        said: dict[str, Any] = {
            "transport": self.transport,
            "urls": self.url,
            "stdio": self.stdio,
            "share": self.share,
            "domain": self.domain,
            "trust": self.trust,
            "era": self.era,
            "case_fold": self.case_fold,
            "credential": self._credential(),
            "headers": None if self.header is None else dict(_pairs("--header", self.header)),
            "ca": None if self.ca is None else _reference("ca", self.ca, none=""),
            "first_byte_s": self.first_byte,
            "grants": self._grants() or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    def moved(self) -> dict[str, Any]:
        """The same of a server that exists: who names another transport leaves the old one's
        address behind.
        """
        body = self.body()
        if self.stdio is not None:
            return {"transport": "stdio", "urls": [], **body}
        return body if self.transport is None else {**body, "stdio": None}

    def _grants(self) -> dict[str, Any]:
        said = {
            "elicitation_form": self.elicitation_form,
            "elicitation_hosts": self.elicitation_host,
            "sampling": self.sampling,
            "roots": self.roots,
            "extensions": self.extension,
        }
        return {name: value for name, value in said.items() if value is not None}

    def _credential(self) -> dict[str, Any] | None:
        said, fields = self.credential, self.credential_field or []
        if said is None or said not in KINDS:
            if fields:
                raise _wrong("--credential-field", f"goes with --credential {'|'.join(KINDS)}")
            if said is None:
                return None
            if said == "none":
                return {"kind": "none"}
            header, found, reference = said.partition("=")
            if not found:
                raise _wrong("--credential", f"is HEADER=secret://NAME, none, {', '.join(KINDS)}")
            return {"kind": "header", "name": header, "value": _reference("value", reference)}
        made: dict[str, Any] = {"kind": said}
        for name, value in _pairs("--credential-field", fields):
            head, _, claim = name.partition(".")
            if head == "claims" and claim:
                made.setdefault("claims", {})[claim] = value
            else:
                made[name] = _reference(name, value) if name in REFERENCES else value
        return made


def _pairs(option: str, items: Iterable[str]) -> Iterable[tuple[str, str]]:
    for item in items:
        name, found, value = item.partition("=")
        if not found or not name:
            raise _wrong(option, "is NAME=VALUE")
        yield name, value


def _reference(name: str, value: str, *, none: str | None = None) -> str:
    """A secret on a command line is one that others have read: it goes nowhere."""
    if none is not None and value in {"", "none"}:
        return none
    if not value.startswith("secret://"):
        raise _wrong(
            name.replace("_", " "), "is a reference, secret://NAME: a file of the plane's secrets"
        )
    return value


def _wrong(what: str, rule: str) -> CommandFailed:
    return CommandFailed(f"{what} {rule}", status=Exit.USAGE)
