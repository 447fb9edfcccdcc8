"""Makes the signed policy bundle: the whole desired state of a data plane as one stock OPA bundle
(deployment.md 3.2, 3.3). Pure Python; same content, serial and time give the same bytes, the
signature excepted.

Collecting the content from the store is desired_state.py's work, when to build publishing.py's.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from joserfc import jws
from joserfc.jwk import ECKey

from services.common.errors import BehavryError
from services.common.ids import NIL_TENANT, PlaneId, TenantId
from services.common.rego.sample import sample_input

ROOT: Final = "behavry"
LIFE_S: Final = 30 * 86_400
#: What a secret looks like; the whole of the data is searched before it is signed.
_SECRETS: Final = re.compile(
    r"bhv_(?:ak|sk|us|enr|join)_[A-Za-z0-9]|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.|AKIA[0-9A-Z]{16}|(?i:bearer)\s+[\w.~+/-]{16,}"
    r'|://[^/\s:@"]+:[^/\s@"]+@'  # within one string: the next one may be an address of mail
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantContent:
    """One tenant's part: its entry in `data.behavry.state.tenants` and its Rego modules by path
    in the archive.
    """

    id: TenantId
    state: dict[str, Any] = field(repr=False)
    modules: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a bundle says, before it has a serial."""

    plane_id: PlaneId
    environment: str
    tenants: Sequence[TenantContent]
    #: Shipped Rego (base policies, libraries, the canaries' entry) by path in the archive.
    shipped: Mapping[str, str] = field(repr=False)

    def digest(self) -> str:
        """SHA-256 of all but serial and times: unchanged content gets no new bundle."""
        hashed = hashlib.sha256()
        for name, body in sorted(_modules(self).items()):
            hashed.update(f"{name}\0{len(body)}\0".encode() + body)
        hashed.update(_canonical(_state(self, serial=0)))
        return hashed.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltBundle:
    archive: bytes = field(repr=False)
    serial: int
    revision: str
    content_digest: str
    etag: str
    created_s: int
    not_after_s: int


def build(content: Content, *, serial: int, created_s: int, key: ECKey, kid: str) -> BuiltBundle:
    """1. files  2. no secret in them  3. signature over each  4. sorted archive.

    Raises BehavryError BUNDLE_CONTAINS_SECRET.
    """
    digest = content.digest()
    revision = f"{serial}-{digest[:16]}"
    not_after_s = created_s + LIFE_S
    metadata = {
        "plane_id": content.plane_id,
        "environment": content.environment,
        "tenants": sorted(tenant.id for tenant in content.tenants),
        "policy_scope": "plane",
        "serial": serial,
        "created": created_s,
        "not_after": not_after_s,
        "min_version": "0.1.0",
        "delivery": "online",
    }
    manifest = {
        "revision": revision,
        "roots": [ROOT],
        "rego_version": 1,
        "metadata": metadata,
    }
    files = _modules(content)  # 1
    files["data.json"] = _canonical(_state(content, serial=serial))
    files[".manifest"] = _canonical(manifest)
    for name, body in files.items():  # 2
        if looks_secret(body.decode("utf-8")):
            raise BehavryError(
                "BUNDLE_CONTAINS_SECRET", "a value in the bundle looks like a secret", file=name
            )
    scope = f"behavry/{content.environment}/{content.plane_id}"
    files[".signatures.json"] = _signatures(files, scope, key, kid)  # 3
    archive = _archive(files)  # 4
    return BuiltBundle(
        archive=archive,
        serial=serial,
        revision=revision,
        content_digest=digest,
        etag=f'"sha256:{hashlib.sha256(archive).hexdigest()}"',
        created_s=created_s,
        not_after_s=not_after_s,
    )


def modes_of(archive: bytes) -> dict[str, dict[str, str]]:
    """The features' modes that a bundle of ours says, by tenant."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile("data.json")
        assert file is not None  # noqa: S101  # every bundle of ours has it
        state = json.load(file)[ROOT]["state"]
    return {tenant: said["modes"] for tenant, said in state["tenants"].items()}


def looks_secret(text: str) -> bool:
    """Whoever takes a text that will be in a bundle asks before: one text would stop them all."""
    return _SECRETS.search(text) is not None


def _state(content: Content, *, serial: int) -> dict[str, Any]:
    state = {
        "plane": {"id": content.plane_id, "environment": content.environment},
        "serial": serial,
        "tenants": {tenant.id: tenant.state for tenant in content.tenants},
        "canaries": _canaries(),
    }
    return {ROOT: {"state": state}}


def _canaries() -> list[dict[str, Any]]:
    """Asked under the nil tenant, whose entry holds the base policies alone: a tenant's own rules
    may lawfully deny everything, the shipped ones may not go wrong.
    """
    nobody: dict[str, Any] = {"agent": {"roles": [], "permissions": []}}
    malformed = sample_input()
    del malformed["agent"]
    return [
        {
            "tenant": NIL_TENANT,
            "input": sample_input(),
            "expect": "allow",
            "why": "a granted permission allows",
        },
        {
            "tenant": NIL_TENANT,
            "input": sample_input(nobody),
            "expect": "deny",
            "why": "no permission, no allow",
        },
        {
            "tenant": NIL_TENANT,
            "input": malformed,
            "expect": "deny",
            "why": "an input without an agent is never allowed",
        },
    ]


def _modules(content: Content) -> dict[str, bytes]:
    files = {path: source.encode() for path, source in content.shipped.items()}
    for tenant in content.tenants:
        files |= {path: source.encode() for path, source in tenant.modules.items()}
    return files


def _canonical(document: Any) -> bytes:
    """Compact, keys sorted: what OPA digests for a structured file, so that its digest of the
    structure is SHA-256 of these bytes.
    """
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _signatures(files: Mapping[str, bytes], scope: str, key: ECKey, kid: str) -> bytes:
    payload = {
        "files": [
            {"name": name, "hash": hashlib.sha256(body).hexdigest(), "algorithm": "SHA-256"}
            for name, body in sorted(files.items())
        ],
        "scope": scope,
    }
    header = {"alg": "ES256", "kid": kid, "typ": "JWT"}
    token = jws.serialize_compact(header, _canonical(payload), key, algorithms=["ES256"])
    return _canonical({"signatures": [token]})


def _archive(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    # mtime 0 in the gzip header too, or the same content would not be the same bytes.
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, body in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(body))
    return packed.getvalue()
