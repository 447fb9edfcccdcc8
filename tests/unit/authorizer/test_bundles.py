"""What the authorizer refuses to run: each defect by its reason, and an innocent twin."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey

from services.authorizer.bundles import BundleRefused, Trust, trust_from, verify
from services.common.ids import PlaneId, TenantId
from services.control.bundles import Content, TenantContent, build

PLANE = PlaneId("dp-test")
TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
KEY = ECKey.generate_key("P-256")
KID = KEY.thumbprint()
NOW_S = 1_800_000_000

Files = dict[str, bytes]


def content(*, plane: str = PLANE, environment: str = "test") -> Content:
    state: dict[str, Any] = {"slug": "acme", "policy_revision": "sha256:0"}
    tenant = TenantContent(
        id=TENANT, state=state, modules={"behavry/tenant/x.rego": "package behavry.x\n"}
    )
    shipped = {"behavry/base/grants.rego": "package behavry.base.grants\n"}
    return Content(
        plane_id=PlaneId(plane), environment=environment, tenants=[tenant], shipped=shipped
    )


def trust() -> Trust:
    key = {**KEY.as_dict(private=False), "kid": KID}
    document = {"version": 1, "roles": {"bundle": {"threshold": 1, "keys": [key]}}}
    return trust_from(json.dumps(document).encode(), plane_id=PLANE, environment="test")


def archive(**changes: str) -> bytes:
    return build(content(**changes), serial=7, created_s=NOW_S, key=KEY, kid=KID).archive


def unpacked(packed: bytes) -> Files:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]  # regular files


def packed(files: Files, *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
        for entry in extra:
            tar.addfile(entry)
    return buffer.getvalue()


def signed(files: Files, *, scope: str | None = None, alg: str = "ES256", kid: str = KID) -> Files:
    """The files with a fresh signature over them, made as the arguments say."""
    body = {name: content for name, content in files.items() if name != ".signatures.json"}
    payload = {
        "files": [
            {"name": name, "hash": hashlib.sha256(one).hexdigest(), "algorithm": "SHA-256"}
            for name, one in body.items()
        ],
        "scope": f"behavry/test/{PLANE}" if scope is None else scope,
    }
    key = KEY if alg == "ES256" else OctKey.import_key(json.dumps(KEY.as_dict(private=False)))
    header = {"alg": alg, "kid": kid}
    token = jws.serialize_compact(header, json.dumps(payload).encode(), key, algorithms=[alg])
    return {**body, ".signatures.json": json.dumps({"signatures": [token]}).encode()}


def edited_manifest(edit: Callable[[dict[str, Any]], None]) -> bytes:
    files = unpacked(archive())
    manifest = json.loads(files[".manifest"])
    edit(manifest)
    files[".manifest"] = json.dumps(manifest).encode()
    return packed(signed(files))


def without_signature() -> bytes:
    files = unpacked(archive())
    del files[".signatures.json"]
    return packed(files)


def foreign_key() -> bytes:
    other = ECKey.generate_key("P-256")
    return build(content(), serial=7, created_s=NOW_S, key=other, kid=other.thumbprint()).archive


def foreign_key_under_our_name() -> bytes:
    other = ECKey.generate_key("P-256")
    return build(content(), serial=7, created_s=NOW_S, key=other, kid=KID).archive


def changed_file() -> bytes:
    files = unpacked(archive())
    files["behavry/base/grants.rego"] += b"# allow all\n"
    return packed(files)


def extra_file() -> bytes:
    return packed({**unpacked(archive()), "behavry/extra.rego": b"package behavry.extra\n"})


def missing_file() -> bytes:
    files = unpacked(archive())
    del files["behavry/tenant/x.rego"]
    return packed(files)


def escaping_file() -> bytes:
    return packed(signed({**unpacked(archive()), "elsewhere/x.rego": b"package x\n"}))


def escaping_root(manifest: dict[str, Any]) -> None:
    manifest["roots"] = ["behavry", "system"]


def foreign_tenant(manifest: dict[str, Any]) -> None:
    manifest["metadata"]["tenants"] = ["0199d0d0-0000-7000-8000-000000000002"]


def past_its_end(manifest: dict[str, Any]) -> None:
    manifest["metadata"]["not_after"] = NOW_S - 1


def no_algorithm() -> bytes:
    files = unpacked(archive())
    token = json.loads(files[".signatures.json"])["signatures"][0]
    _, payload, _ = token.split(".")
    files[".signatures.json"] = json.dumps(
        {"signatures": [f"eyJhbGciOiJub25lIn0.{payload}."]}
    ).encode()
    return packed(files)


def traversal() -> bytes:
    return packed(signed({**unpacked(archive()), "behavry/../../etc/x.rego": b"package x\n"}))


def link_entry() -> bytes:
    entry = tarfile.TarInfo("behavry/link.rego")
    entry.type = tarfile.SYMTYPE
    entry.linkname = "/etc/passwd"
    return packed(unpacked(archive()), entry)


def device_entry() -> bytes:
    entry = tarfile.TarInfo("behavry/fifo.rego")
    entry.type = tarfile.FIFOTYPE
    return packed(unpacked(archive()), entry)


def bomb() -> bytes:
    return gzip.compress(b"\0" * (64 << 20))


REFUSALS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "unsigned": ("BUNDLE_UNSIGNED", without_signature),
    "key outside the trust root": ("BUNDLE_UNKNOWN_KEY", foreign_key),
    "another key under a known name": ("BUNDLE_DIGEST_MISMATCH", foreign_key_under_our_name),
    "alg none": ("BUNDLE_BAD_ALGORITHM", no_algorithm),
    "HMAC with the public key": (
        "BUNDLE_BAD_ALGORITHM",
        lambda: packed(signed(unpacked(archive()), alg="HS256")),
    ),
    "file altered": ("BUNDLE_DIGEST_MISMATCH", changed_file),
    "extra file": ("BUNDLE_FILE_SET", extra_file),
    "missing file": ("BUNDLE_FILE_SET", missing_file),
    "past its end": ("BUNDLE_EXPIRED", lambda: edited_manifest(past_its_end)),
    "other tenant": ("BUNDLE_WRONG_TENANT", lambda: edited_manifest(foreign_tenant)),
    "other plane": ("BUNDLE_SCOPE_MISMATCH", lambda: archive(plane="dp-other")),
    "other plane under our scope": (
        "BUNDLE_WRONG_PLANE",
        lambda: packed(signed(unpacked(archive(plane="dp-other")))),
    ),
    "other environment under our scope": (
        "BUNDLE_WRONG_PLANE",
        lambda: packed(signed(unpacked(archive(environment="production")))),
    ),
    "scope differs": (
        "BUNDLE_SCOPE_MISMATCH",
        lambda: packed(signed(unpacked(archive()), scope="behavry/test/other")),
    ),
    "root escapes": ("BUNDLE_ROOT_ESCAPE", lambda: edited_manifest(escaping_root)),
    "file outside the root": ("BUNDLE_ROOT_ESCAPE", escaping_file),
    "gzip bomb": ("BUNDLE_TOO_LARGE", bomb),
    "path traversal": ("BUNDLE_UNSAFE_PATH", traversal),
    "link": ("BUNDLE_UNSAFE_ENTRY", link_entry),
    "fifo": ("BUNDLE_UNSAFE_ENTRY", device_entry),
    "not an archive": ("BUNDLE_MALFORMED", lambda: b"no archive"),
    "truncated": ("BUNDLE_MALFORMED", lambda: archive()[:200]),
}


@pytest.mark.parametrize("defect", REFUSALS)
def test_a_defective_bundle_is_refused_by_its_reason(defect: str) -> None:
    reason, make = REFUSALS[defect]

    with pytest.raises(BundleRefused) as refused:
        verify(make(), trust(), now_s=NOW_S)

    assert reason == refused.value.reason


def test_a_good_bundle_passes_and_so_does_the_same_one_packed_and_signed_anew() -> None:
    for good in (archive(), packed(signed(unpacked(archive())))):
        bundle = verify(good, trust(), now_s=NOW_S)

        assert (7, {TENANT}) == (bundle.serial, set(bundle.state.tenants))
        assert "behavry/tenant/x.rego" in bundle.modules


def test_same_content_serial_and_time_give_the_same_bytes_but_for_the_signature() -> None:
    first, second = unpacked(archive()), unpacked(archive())
    del first[".signatures.json"], second[".signatures.json"]

    assert first == second


@pytest.mark.parametrize(
    "secret",
    [
        "bhv_ak_0123.abcdef",
        "-----BEGIN EC PRIVATE KEY-----",
        "Bearer abcdefghijklmnop",
        "postgresql://user:hunter2@db/x",
    ],
)
@pytest.mark.parametrize("section", ["servers", "roles", "agents", "tools"])
def test_a_secret_in_any_section_is_never_signed(section: str, secret: str) -> None:
    tenant = TenantContent(id=TENANT, state={section: {"x": {"y": secret}}}, modules={})
    planted = Content(plane_id=PLANE, environment="test", tenants=[tenant], shipped={})

    with pytest.raises(Exception, match="looks like a secret") as refused:
        build(planted, serial=1, created_s=NOW_S, key=KEY, kid=KID)

    assert secret not in str(refused.value)
