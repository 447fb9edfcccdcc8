"""Certificates of a test's own authority, for servers and clients on this machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.fakes.clock import START_NS

_BEGIN = dt.datetime.fromtimestamp(START_NS // 10**9, dt.UTC)
_END = _BEGIN + dt.timedelta(days=20 * 365)


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM texts."""

    certificate: str
    key: str
    #: The same key under the password `hunter2`.
    encrypted_key: str

    def written(self, directory: Path, name: str) -> tuple[Path, Path]:
        paths = directory / f"{name}.crt", directory / f"{name}.key"
        for path, text in zip(paths, (self.certificate, self.key), strict=True):
            path.write_text(text)
        return paths


class Authority:
    """Signs what a test wants."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        made = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._certificate = made.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(Encoding.PEM).decode()

    def server(self, *addresses: str) -> Pair:
        """For IP addresses of this machine."""
        names = [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses or ("127.0.0.1",)]
        return self._signed("a server", x509.SubjectAlternativeName(names))

    def client(self, name: str) -> Pair:
        return self._signed(name, x509.SubjectAlternativeName([x509.DNSName(name)]))

    def _signed(self, name: str, names: x509.SubjectAlternativeName) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_named(name), self._name, key).add_extension(names, critical=False)
        certificate = made.sign(self._key, hashes.SHA256())
        return Pair(
            certificate.public_bytes(Encoding.PEM).decode(),
            _pem(key, NoEncryption()),
            _pem(key, BestAvailableEncryption(b"hunter2")),
        )


def server_context(pair: Pair, directory: Path, *, clients: str = "") -> ssl.SSLContext:
    """`clients`: the authority whose certificates a client must show."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.written(directory, "server"))
    if clients:
        context.load_verify_locations(cadata=clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
    )


def _pem(
    key: ec.EllipticCurvePrivateKey, encryption: NoEncryption | BestAvailableEncryption
) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()
