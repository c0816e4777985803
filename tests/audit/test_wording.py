from __future__ import annotations

from ftray.audit.report import CHECKS
from ftray.audit.wording import NAMES


def test_every_check_has_a_name_of_its_own():
    assert tuple(NAMES) == CHECKS
    assert len(set(NAMES.values())) == len(CHECKS)
    assert all(name[0].isupper() and not name.endswith(".") and len(name) < 75 for name in NAMES.values())
