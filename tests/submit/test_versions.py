from __future__ import annotations

import platform

import pytest
import ray

from ftray.errors import InputError
from ftray.submit.versions import Versions, own_versions, require_same_ftray, require_same_versions

OURS = Versions(ray="2.60.0", python="3.11.7")


def test_own_versions_are_those_of_this_process() -> None:
    assert own_versions() == Versions(ray=ray.__version__, python=platform.python_version())


@pytest.mark.parametrize("python", ["3.11.7", "3.11.2", None])
def test_a_patch_release_of_python_may_differ(python: str | None) -> None:
    require_same_versions(OURS, Versions(ray="2.60.0", python=python))


@pytest.mark.parametrize(
    ("ray_version", "python", "what"), [("2.59.1", "3.11.7", "Ray"), ("2.60.0", "3.12.1", "Python")]
)
def test_another_ray_or_python_is_refused_with_both_versions(ray_version: str, python: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        require_same_versions(OURS, Versions(ray=ray_version, python=python))
    assert caught.value.kind == "version_mismatch"
    assert caught.value.allowed == {what: ray_version if what == "Ray" else python}
    assert (ray_version if what == "Ray" else "3.12") in caught.value.hint


@pytest.mark.parametrize("there", ["0.0.9", None])
def test_another_ftray_is_refused_where_none_is_sent(there: str | None) -> None:
    require_same_ftray("0.1.0", "0.1.0")
    with pytest.raises(InputError) as caught:
        require_same_ftray("0.1.0", there)
    assert "--no-ship" in caught.value.hint
