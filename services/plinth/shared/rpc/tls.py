"""TLS: what a certificate must be, and gRPC's credentials of it. Mutual between the stages.

A replica's address is a pod's and changes, so a certificate names the stage instead:
`plinth-<stage>`. It proves which stage answers; who calls is still said by the cluster's token.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from plinth.shared.errors import FailedPrecondition
from plinth.shared.settings_sections import ServerTlsSettings, TlsSettings
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.tls")


def server_name(stage: str) -> str:
    """The name that a stage's certificate carries."""
    return f"plinth-{stage}"


def check(tls: TlsSettings | ServerTlsSettings, stage: str = "") -> None:
    """FailedPrecondition, saying what to do, unless the certificate is valid now, belongs to the
    key and, with `stage`, names it."""
    assert tls.certificate is not None
    assert tls.key is not None
    certificate = _certificate(tls.certificate)
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise _refused(
            f"{tls.certificate} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: "
            "renew it (with cert-manager, `kubectl get certificate` says why it was not)",
            "CERTIFICATE_EXPIRED",
        )
    if now < certificate.not_valid_before_utc:
        raise _refused(
            f"{tls.certificate} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
            "UTC only: is this machine's clock right?",
            "CERTIFICATE_NOT_YET_VALID",
        )
    try:
        key = serialization.load_pem_private_key(_read(tls.key), password=None)
    except (ValueError, TypeError) as error:
        raise _refused(f"{tls.key} is no private key in PEM: {error}", "KEY_MALFORMED") from error
    if key.public_key() != certificate.public_key():
        raise _refused(
            f"{tls.key} is not the key of {tls.certificate}: take both from one Secret",
            "KEY_OTHER",
        )
    names = _names(certificate)
    if stage and server_name(stage) not in names:
        raise _refused(
            f"{tls.certificate} names {', '.join(names) or 'nobody'}, not {server_name(stage)}: "
            "add it to the certificate's DNS names",
            "CERTIFICATE_NAME",
        )


def server_credentials(tls: TlsSettings | ServerTlsSettings, stage: str) -> grpc.ServerCredentials:
    """Shows the certificate and, between stages, asks callers for one of the same authority. Reads
    the files anew when they change; a renewed certificate that is wrong is logged, and the last
    good one stays.
    FailedPrecondition as `check`."""
    mutual = isinstance(tls, TlsSettings)
    name = stage if mutual else ""
    check(tls, name)
    seen = stamp(tls)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        try:
            if (now := stamp(tls)) == seen:
                return None
            before, seen = seen, now
            check(tls, name)
            configuration = _configuration(tls)
            if stamp(tls) != now:  # it may be of two pairs: read again at the next connection
                seen = before
                return None
            return configuration
        except (FailedPrecondition, OSError) as error:
            _log.error("the renewed certificate is not taken", error=str(error))
            return None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(tls),
        fetch,  # type: ignore[arg-type]  # (None is "no change"; the stubs don't know)
        require_client_authentication=mutual,
    )


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials:
    """As they are on disk now; FailedPrecondition as `check`."""
    check(tls)
    assert tls.ca is not None
    assert tls.key is not None
    assert tls.certificate is not None
    return grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.certificate))


def trust(certificate: Path) -> tuple[bytes, str]:
    """(PEM that trusts this certificate alone, a name that it carries). FailedPrecondition when it
    can't be read or names no host."""
    names = _names(_certificate(certificate))
    if not names:
        raise _refused(f"{certificate} names no host: add DNS names to it", "CERTIFICATE_NAME")
    return _read(certificate), names[0]


def expiry_unix_s(certificate: Path) -> float:
    """When the certificate expires, in Unix time. FailedPrecondition when it can't be read."""
    return _certificate(certificate).not_valid_after_utc.timestamp()


def _configuration(
    tls: TlsSettings | ServerTlsSettings,
) -> grpc.ServerCertificateConfiguration:
    assert tls.key is not None
    assert tls.certificate is not None
    pair = (_read(tls.key), _read(tls.certificate))
    ca = tls.ca if isinstance(tls, TlsSettings) else None
    roots = None if ca is None else _read(ca)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def stamp(tls: TlsSettings | ServerTlsSettings) -> tuple[tuple[int, int], ...]:
    """What changes when a file does. OSError when one can't be looked at."""
    # A Secret's files are links that are exchanged, so the file behind is looked at.
    files = [tls.certificate, tls.key, tls.ca if isinstance(tls, TlsSettings) else None]
    found = [path.stat() for path in files if path is not None]
    return tuple((status.st_mtime_ns, status.st_ino) for status in found)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise _refused(f"{path} is no certificate in PEM", "CERTIFICATE_MALFORMED") from error


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(names.value.get_values_for_type(x509.DNSName))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused(f"{path} can't be read: {error.strerror}", "TLS_FILE") from error


def _refused(message: str, reason: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason=reason, field="tls")
