"""doctor's findings about packages: what is missing, too old or broken, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..core.versions import satisfies
from .machine import Facts, Package

EXTRAS = {
    "report": "figures of studies and probes",
    "slurm": "studies on a Slurm cluster",
    "ctranslate2": "export to CTranslate2, and translation by it",
    "test": "the test suite",
    "dev": "formatting, linting and types",
}
DISPENSABLE = {"tensorboard": "runs go on without its events"}
MEND_PACKAGES = "mend first what is said of packages below; "
INSTALL = "pip install -c constraints.txt"


@dataclass(frozen=True)
class Finding:
    """`note`: training works, but something is slower, smaller or missing; `wrong`: it does not work."""

    topic: str
    state: Literal["ok", "note", "wrong"]
    found: str
    remedy: str = ""


def is_broken(facts: Facts) -> bool:
    """Is there a package that training needs and that cannot be imported?"""
    return any(package.error and _is_needed(package) for package in facts.packages)


def _is_needed(package: Package) -> bool:
    return not package.extra and package.name not in DISPENSABLE


def packages_found(facts: Facts) -> Iterator[Finding]:
    """A finding for each required package that has a fault, and one for each extra."""
    if not facts.packages:
        remedy = f"in the checkout: {INSTALL} -e ."
        yield Finding("packages", "note", "this toolkit is not installed: no versions were compared", remedy)
        return
    required = [package for package in facts.packages if not package.extra]
    poor = [package for package in required if _fault(package)]
    for package in poor:
        again = " --force-reinstall" if package.error else ""
        remedy = f'pip install{again} "{package.name}{package.wanted}"'
        state: Literal["note", "wrong"] = "wrong" if _is_needed(package) else "note"
        without = "" if _is_needed(package) else f"; {DISPENSABLE[package.name]}"
        yield Finding("packages", state, f"{package.name} {_fault(package)}{without}", remedy)
    if not poor:
        versions = ", ".join(f"{package.name} {package.installed}" for package in required)
        yield Finding("packages", "ok", versions)
    for extra in dict.fromkeys(package.extra for package in facts.packages if package.extra):
        faults = [
            f"{package.name} {fault}"
            for package in facts.packages
            if package.extra == extra and (fault := _fault(package))
        ]
        purpose = EXTRAS.get(extra, "optional")
        if faults:
            remedy = f'if you want that: {INSTALL} -e ".[{extra}]"'
            yield Finding(f"extra {extra}", "note", f"{purpose}: {'; '.join(faults)}", remedy)
        else:
            yield Finding(f"extra {extra}", "ok", purpose)


def _fault(package: Package) -> str:
    """`is not installed`, `1.2 is not >=2.9`, `cannot be imported (...)`, or nothing."""
    if package.installed is None:
        return "is not installed"
    if not satisfies(package.installed, package.wanted):
        return f"{package.installed} is not {package.wanted}"
    return f"cannot be imported ({package.error})" if package.error else ""
