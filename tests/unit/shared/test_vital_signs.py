"""What a process tells of its own condition, on real certificates, disks and a Redis that goes."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import REGISTRY

from plinth.shared import vital_signs
from plinth.shared.settings import load_settings


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"plinth_{name}", labels)


def certificate(path: Path, expires: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(expires - datetime.timedelta(days=90))
        .not_valid_after(expires)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_the_certificate_is_read_at_each_scrape(tmp_path: Path) -> None:
    path = tmp_path / "tls.crt"
    soon = datetime.datetime(2031, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    certificate(path, soon)
    tls = {"certificate": path, "key": path, "ca": path}
    vital_signs.watch(load_settings(data_dir=tmp_path, tls=tls))

    def told() -> float | None:
        name = "tls_certificate_expiry_timestamp_seconds"
        return sample(name, certificate=str(path))

    assert told() == soon.timestamp()
    certificate(path, soon + datetime.timedelta(days=90))
    assert told() == soon.timestamp() + 90 * 86400
    path.write_text("no certificate")
    assert told() == 0.0


def test_the_disk_of_a_store_on_files(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    vital_signs.watch(settings)
    assert math.isnan(sample("store_size_bytes", store=settings.store()) or 0.0)
    (tmp_path / "store").mkdir()
    truth = os.statvfs(tmp_path)
    size = sample("store_size_bytes", store=settings.store())
    free = sample("store_free_bytes", store=settings.store())
    assert size == truth.f_frsize * truth.f_blocks
    assert free is not None and 0 < free <= size


def test_a_remote_store_has_no_disk(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, store_url="s3://elsewhere/x")
    vital_signs.watch(settings)
    assert sample("store_size_bytes", store="s3://elsewhere/x") is None
