"""A bill of materials (CycloneDX 1.6, JSON) of an image's file system, on standard output.

    python sbom.py ROOT NAME VERSION

Python's packages by their metadata under opt/plinth, Debian's by dpkg's status. Runs while an
image is built (the target `sbom`), with `cyclonedx-python-lib` and nothing of Plinth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def python_packages(root: Path) -> Iterator[Component]:
    """Distributions that the image's own environment holds."""
    folders = [str(folder) for folder in sorted(root.glob("opt/plinth/lib/python3*/site-packages"))]
    for one in distributions(path=folders):
        name = one.metadata["Name"]
        yield _component(name, one.version, PackageURL("pypi", None, name.lower(), one.version))


def debian_packages(root: Path) -> Iterator[Component]:
    """Installed packages of dpkg, each with its architecture; their suite is os-release's."""
    release = dict(
        line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if line
    )
    distro = release.get("VERSION_CODENAME", "unknown").strip('"')
    for block in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = HeaderParser().parsestr(block)
        if fields.get("Status") != "install ok installed":
            continue
        name, version = fields["Package"], fields["Version"]
        about = {"arch": fields["Architecture"], "distro": distro}
        yield _component(name, version, PackageURL("deb", "debian", name, version, about))


def _component(name: str, version: str, url: PackageURL) -> Component:
    return Component(
        name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string()
    )


def main(arguments: list[str]) -> int:
    """1 when the image has no packages of one kind: then something was looked for amiss."""
    root, name, version = Path(arguments[0]), arguments[1], arguments[2]
    python, debian = list(python_packages(root)), list(debian_packages(root))
    if not python or not debian:
        print(f"{root}: {len(python)} Python, {len(debian)} Debian packages", file=sys.stderr)
        return 1
    bom = Bom(components=[*python, *debian])
    bom.metadata.component = Component(
        name=name, version=version, type=ComponentType.CONTAINER, bom_ref=f"{name}@{version}"
    )
    print(JsonV1Dot6(bom).output_as_string(indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
