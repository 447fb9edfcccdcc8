"""Two import contracts that import-linter does not bring: the layers and the purity of a service.

Decides which file names of a service are its edges; every other name is a concept, so that a new
file is held to the strictest rule until somebody argues here that it is an edge. Which services
there are, and the contracts between them, is pyproject.toml's to say.
"""

from collections.abc import Iterator

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

# From the outside in. A file may import what stands after its own line, and concepts; names on one
# line do not import each other.
EDGES: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("app", "stdio_host", "workers"),  # what a process of the service may be
    ("transports",),  # listeners: they bring bytes to the pipeline
    ("servicer", "servicers", "api", "pipeline"),
    # What works in the background, joining concepts with the outside.
    (
        "jobs",
        "notifications",
        "other_replicas",
        "policy_watch",
        "publishing",
        "stores",
        "writer",
    ),
    (
        "clients",
        "engine",
        "journal",
        "link",
        "planes",
        "reading",
        "shared_counts",
        "store",
        "tickets",
    ),
)
CONCEPT = len(EDGES)

# Parts of an edge's package that are concepts: anybody may import them, and they are held to the
# purity of concepts in return.
INNER = frozenset(
    {
        "engine.answer",
        "engine.batching",
        "engine.protocol",
        "engine.prune",
        "notifications.destinations",
        "notifications.egress",
        "notifications.forms",
        "notifications.notices",
        "notifications.sending",
        "tickets.binding",
        "tickets.book",
        "tickets.opening",
        "tickets.protocol",
        "tickets.ticket",
    }
)

# What makes a concept impure: a wire, a database, somebody's cloud.
OUTSIDE = ("asyncpg", "behavry", "boto3", "grpc", "grpc_health", "grpc_status", "redis")
OUTSIDE_OF_OURS = ("services.common.rpc", "services.common.postgres")


def layer(module: str) -> int:
    """The line of EDGES on which `services.<service>.<name>...` stands; concepts come after all."""
    name, *rest = module.split(".")[2:4]
    if rest and f"{name}.{rest[0]}" in INNER:
        return CONCEPT
    return next((i for i, names in enumerate(EDGES) if name in names), CONCEPT)


class ServiceLayers(Contract):
    """Inside a service an import goes inwards, never outwards nor sideways between edges."""

    services = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002, FBT001  # theirs
        found = [
            f"{importer} is not allowed to import {imported} ({_lines(graph, importer, imported)})"
            for service in sorted(self.services)  # type: ignore[call-overload]  # filled in by the linter
            for importer, imported in _imports_within(graph, service)
            if not allowed(importer, imported)
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        _render(check)


class PureConcepts(Contract):
    """No concept reaches a wire or a database, not even through somebody else."""

    services = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002, FBT001  # theirs
        outside = [m for m in graph.modules if _is_outside(m)]
        found: list[str] = []
        for service in sorted(self.services):  # type: ignore[call-overload]  # as above
            for concept in _modules_of(graph, service):
                if layer(concept) != CONCEPT:
                    continue
                chains = (graph.find_shortest_chain(concept, m) for m in outside)
                shortest = min((c for c in chains if c), key=len, default=None)
                if shortest:
                    found.append(" -> ".join(shortest))
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        _render(check)


def allowed(importer: str, imported: str) -> bool:
    """Inwards, or within what one edge's package holds."""
    if importer.split(".")[2] == imported.split(".")[2]:
        return True
    return layer(importer) < layer(imported) or layer(importer) == CONCEPT == layer(imported)


def _is_outside(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in OUTSIDE or any(
        module == own or module.startswith(f"{own}.") for own in OUTSIDE_OF_OURS
    )


def _modules_of(graph: ImportGraph, service: str) -> list[str]:
    return sorted(m for m in graph.modules if m.startswith(f"{service}."))


def _imports_within(graph: ImportGraph, service: str) -> Iterator[tuple[str, str]]:
    for importer in _modules_of(graph, service):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            if imported.startswith(f"{service}."):
                yield importer, imported


def _lines(graph: ImportGraph, importer: str, imported: str) -> str:
    details = graph.get_import_details(importer=importer, imported=imported)
    return ", ".join(f"l. {d['line_number']}" for d in details)


def _render(check: ContractCheck) -> None:
    for line in check.metadata["found"]:
        output.print_error(line)
