"""A service's certificate, as mutual TLS between the stages wants it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtensionOID

from plinth.cluster.finding import Finding
from plinth.shared.rpc.tls import server_name

SOON = timedelta(days=14)


def examine(secret: str, data: Mapping[str, bytes], stage: str) -> Iterator[Finding]:
    """data: "tls.crt" and "ca.crt" as PEM. Names, expiry, and that the authority issued it."""
    try:
        chain = x509.load_pem_x509_certificates(data["tls.crt"])
        authorities = x509.load_pem_x509_certificates(data["ca.crt"])
    except ValueError as error:
        yield Finding(f"certificate {secret}", "fail", f"is no PEM: {error}", "make it anew")
        return
    problems = list(_problems(chain, authorities, stage))
    for level, told, advice in problems:
        yield Finding(f"certificate {secret}", level, told, advice)
    if not problems:
        until = chain[0].not_valid_after_utc.strftime("%Y-%m-%d")
        yield Finding(f"certificate {secret}", "ok", f"{server_name(stage)}, until {until}")


def _problems(
    chain: list[x509.Certificate], authorities: list[x509.Certificate], stage: str
) -> Iterator[tuple[str, str, str]]:
    """(level, what, advice) of each thing that is wrong."""
    own = chain[0]
    renew = "renew it: with cert-manager, look at its Certificate; else replace the Secret"
    now = datetime.now(UTC)
    for what, one in (("", own), *((" of the authority", ca) for ca in authorities)):
        end, begin = one.not_valid_after_utc, one.not_valid_before_utc
        if end <= now:
            yield "fail", f"the certificate{what} expired on {end:%Y-%m-%d %H:%M} UTC", renew
        elif end - now < SOON:
            yield "warn", f"the certificate{what} expires on {end:%Y-%m-%d %H:%M} UTC", renew
        if begin > now:
            yield "fail", f"the certificate{what} is not valid before {begin:%Y-%m-%d}", renew
    wanted = server_name(stage)
    names = _names(own)
    if wanted not in names:
        told = f"it names {', '.join(names) or 'nobody'}, not {wanted}"
        yield "fail", told, f"issue it with the DNS name {wanted}: peers verify that"
    if not any(_issued(link, authority) for link in chain for authority in authorities):
        yield "fail", "ca.crt did not issue it", "take both from the same authority"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return []
    assert isinstance(found.value, x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def _issued(own: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
