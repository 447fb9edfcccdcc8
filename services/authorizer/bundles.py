"""Decides whether an archive is a bundle that this plane may run (deployment.md 3.2-3.6).

Pure: bytes and the trust root in, a VerifiedBundle or BundleRefused out. Fetching, keeping and
offering it to the engine is the work of bundle_feed.py and bundle_store.py.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from joserfc import errors as jose
from joserfc import jws
from joserfc.jwk import ECKey

from services.authorizer import plane_state
from services.common.errors import BehavryError

MAX_PACKED: Final = 32 << 20
MAX_UNPACKED: Final = 256 << 20
MAX_RATIO: Final = 100
MAX_FILES: Final = 10_000
ROOT: Final = "behavry"
SIGNATURES: Final = ".signatures.json"
MANIFEST: Final = ".manifest"
DATA: Final = "data.json"


class BundleRefused(BehavryError):
    """`reason` is one of the BUNDLE_* names of the error catalogue."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys of trust.json by key id, and the scope that this plane accepts: `keys` sign bundles,
    `decision_keys` what people decided about escalations; a trust root may lack the latter.
    """

    keys: dict[str, dict[str, Any]]
    plane_id: str
    environment: str
    decision_keys: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def scope(self) -> str:
        return f"behavry/{self.environment}/{self.plane_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """What passed. `digest` is `sha256:<hex>` of the archive, as in the bundle API's ETag."""

    archive: bytes = field(repr=False)
    digest: str
    serial: int
    revision: str
    created_s: int
    not_after_s: int
    state: plane_state.PlaneState = field(repr=False)
    modules: dict[str, str] = field(repr=False)
    data_json: bytes = field(repr=False)


class _Metadata(msgspec.Struct, frozen=True, kw_only=True):
    plane_id: str
    environment: str
    tenants: tuple[str, ...]
    serial: int
    created: int
    not_after: int


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    revision: str
    roots: tuple[str, ...]
    metadata: _Metadata
    rego_version: int = 1


class _SignedFile(msgspec.Struct, frozen=True):
    name: str
    hash: str
    algorithm: str


class _Signed(msgspec.Struct, frozen=True):
    files: tuple[_SignedFile, ...]
    scope: str = ""


def trust_from(document: bytes, *, plane_id: str, environment: str) -> Trust:
    """The trust root of trust.json version 1. Raises BundleRefused BUNDLE_MALFORMED."""
    try:
        roles = json.loads(document)["roles"]
        by_id = {str(key["kid"]): key for key in roles["bundle"]["keys"]}
        deciding = {str(key["kid"]): key for key in roles.get("decision", {"keys": ()})["keys"]}
    except (ValueError, KeyError, TypeError, AttributeError) as bad:
        raise BundleRefused("BUNDLE_MALFORMED", "the trust root cannot be read") from bad
    return Trust(by_id, plane_id, environment, deciding)


def verify(archive: bytes, trust: Trust, *, now_s: int) -> VerifiedBundle:
    """1. unpack under caps  2. signature  3. file set and digests  4. manifest: scope, roots,
    plane, tenants, validity  5. data. Raises BundleRefused.
    """
    files = _unpack(archive)  # 1
    signed = _signed(files, trust)  # 2
    _same_files(files, signed)  # 3
    if signed.scope != trust.scope:  # 4
        raise BundleRefused("BUNDLE_SCOPE_MISMATCH", "the bundle is signed for another scope")
    manifest = _manifest(files, trust, now_s)
    try:  # 5
        state = plane_state.parse(files[DATA])
    except msgspec.DecodeError as bad:
        raise BundleRefused("BUNDLE_MALFORMED", "data.json has not the expected shape") from bad
    _consistent(state, manifest)
    return VerifiedBundle(
        archive=archive,
        digest=f"sha256:{hashlib.sha256(archive).hexdigest()}",
        serial=manifest.metadata.serial,
        revision=manifest.revision,
        created_s=manifest.metadata.created,
        not_after_s=manifest.metadata.not_after,
        state=state,
        modules={
            name: content.decode() for name, content in files.items() if name.endswith(".rego")
        },
        data_json=files[DATA],
    )


def _unpack(archive: bytes) -> dict[str, bytes]:
    if len(archive) > MAX_PACKED:
        raise BundleRefused("BUNDLE_TOO_LARGE", "the packed bundle is over 32 MiB")
    limit = min(MAX_UNPACKED, max(len(archive) * MAX_RATIO, 1 << 20))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(archive)) as unzipped:
            tar_bytes = unzipped.read(limit + 1)
    except (OSError, EOFError, zlib.error) as bad:
        raise BundleRefused("BUNDLE_MALFORMED", "the bundle is not a gzip archive") from bad
    if len(tar_bytes) > limit:
        raise BundleRefused("BUNDLE_TOO_LARGE", "the unpacked bundle is over its limit")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
            for entry in tar:
                _add(files, tar, entry)
    except tarfile.TarError as bad:
        raise BundleRefused("BUNDLE_MALFORMED", "the bundle is not a tar archive") from bad
    return files


def _add(files: dict[str, bytes], tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    if entry.isdir():
        return
    if not entry.isreg():
        raise BundleRefused("BUNDLE_UNSAFE_ENTRY", "the bundle holds more than regular files")
    name = entry.name.removeprefix("./")
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or "\0" in name:
        raise BundleRefused("BUNDLE_UNSAFE_PATH", "a file name in the bundle is not relative")
    if name in files or len(files) >= MAX_FILES:
        raise BundleRefused("BUNDLE_FILE_SET", "the bundle repeats a file or holds too many")
    content = tar.extractfile(entry)
    files[name] = content.read() if content else b""


def _signed(files: dict[str, bytes], trust: Trust) -> _Signed:
    if SIGNATURES not in files:
        raise BundleRefused("BUNDLE_UNSIGNED", "the bundle carries no signature")
    try:
        tokens = json.loads(files[SIGNATURES])["signatures"]
        (token,) = tokens
        header = json.loads(_b64(token.split(".")[0]))
    except (ValueError, KeyError, TypeError, AttributeError) as bad:
        raise BundleRefused("BUNDLE_UNSIGNED", "the bundle needs exactly one signature") from bad
    if header.get("alg") != "ES256":
        raise BundleRefused("BUNDLE_BAD_ALGORITHM", "bundles are signed with ES256 only")
    key = trust.keys.get(str(header.get("kid")))
    if key is None:
        raise BundleRefused("BUNDLE_UNKNOWN_KEY", "the signing key is not in the trust root")
    try:
        checked = jws.deserialize_compact(token, ECKey.import_key(key), algorithms=["ES256"])
        return msgspec.json.decode(checked.payload, type=_Signed)
    except (jose.JoseError, ValueError, msgspec.DecodeError) as bad:
        raise BundleRefused("BUNDLE_DIGEST_MISMATCH", "the bundle's signature is wrong") from bad


def _same_files(files: dict[str, bytes], signed: _Signed) -> None:
    named = {item.name: item for item in signed.files}
    if set(named) != set(files) - {SIGNATURES} or len(named) != len(signed.files):
        raise BundleRefused("BUNDLE_FILE_SET", "the files are not exactly the signed ones")
    for name, item in named.items():
        if item.algorithm != "SHA-256":
            raise BundleRefused("BUNDLE_BAD_ALGORITHM", "file digests are SHA-256 only")
        # Our builder writes structured files in the canonical form that OPA digests, so that the
        # digest of the bytes is the digest of the structure.
        if hashlib.sha256(files[name]).hexdigest() != item.hash:
            raise BundleRefused("BUNDLE_DIGEST_MISMATCH", "a file differs from its signed digest")


def _manifest(files: dict[str, bytes], trust: Trust, now_s: int) -> _Manifest:
    try:
        manifest = msgspec.json.decode(files[MANIFEST], type=_Manifest)
        files[DATA]  # a bundle without data is malformed
    except (KeyError, msgspec.DecodeError) as bad:
        raise BundleRefused("BUNDLE_MALFORMED", "manifest or data cannot be read") from bad
    if manifest.roots != (ROOT,):
        raise BundleRefused("BUNDLE_ROOT_ESCAPE", "the bundle's root is not exactly `behavry`")
    if any(
        not (name in {MANIFEST, DATA, SIGNATURES} or name.startswith(f"{ROOT}/")) for name in files
    ):
        raise BundleRefused("BUNDLE_ROOT_ESCAPE", "a file lies outside the root `behavry`")
    metadata = manifest.metadata
    if (metadata.plane_id, metadata.environment) != (trust.plane_id, trust.environment):
        raise BundleRefused("BUNDLE_WRONG_PLANE", "the bundle is for another plane or environment")
    if now_s >= metadata.not_after:
        raise BundleRefused("BUNDLE_EXPIRED", "the bundle is past its `not_after`")
    return manifest


def _consistent(state: plane_state.PlaneState, manifest: _Manifest) -> None:
    metadata = manifest.metadata
    if set(state.tenants) != set(metadata.tenants):
        raise BundleRefused("BUNDLE_WRONG_TENANT", "data and manifest name different tenants")
    if (state.plane.id, state.plane.environment) != (metadata.plane_id, metadata.environment):
        raise BundleRefused("BUNDLE_WRONG_PLANE", "data and manifest name different planes")
    if state.serial != metadata.serial:
        raise BundleRefused("BUNDLE_MALFORMED", "data and manifest carry different serials")


def _b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
