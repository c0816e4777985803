"""Versions that must agree between the machine that submits and the cluster."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ftray.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What one side runs."""

    ray: str
    python: str | None
    """None where the cluster does not tell it."""


def own_versions() -> Versions:
    """Return what this process runs."""
    import ray

    return Versions(ray=ray.__version__, python=platform.python_version())


def require_same_versions(own: Versions, cluster: Versions) -> None:
    """Raise InputError `version_mismatch` where Ray, or the minor version of Python, is another on the cluster.

    What is pickled by one Python or Ray is not read by another.
    """
    if own.ray != cluster.ray:
        raise _mismatch("Ray", own.ray, cluster.ray, f"pip install 'ray[default,train,tune,serve]=={cluster.ray}'")
    if cluster.python is not None and _minor(own.python) != _minor(cluster.python):
        minor = _minor(cluster.python)
        raise _mismatch("Python", own.python or "", cluster.python, f"submit from an environment with Python {minor}")


def require_same_ftray(own: str, cluster: str | None) -> None:
    """Raise InputError `version_mismatch` where the cluster's own ftray is another, or there is none."""
    if own != cluster:
        raise _mismatch("ftray", own, cluster or "none", "leave out --no-ship, which sends this one along")


def _minor(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])


def _mismatch(what: str, own: str, cluster: str, way_out: str) -> InputError:
    return InputError(
        f"{what} is {own} here and {cluster} on the cluster",
        kind="version_mismatch",
        given={what: own},
        allowed={what: cluster},
        hint=f"Use the cluster's version here: {way_out}." if what != "ftray" else f"{way_out.capitalize()}.",
    )
