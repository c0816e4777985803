"""Print every skipped test; fail on one that is not listed, with its reason, in the file of expected skips."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(junit: Path, expected: Path) -> int:
    """Compare the skips of a junit file with `path::name: reason` lines; return the exit code."""
    lines = [line for line in expected.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    known = {line.split(": ", 1)[0].split("::")[-1] for line in lines}
    # "*: words" lists every skip whose message begins with these words.
    reasons = tuple(line.split(": ", 1)[1] for line in lines if line.startswith("*: "))
    unexpected = 0
    for case in ElementTree.parse(junit).iter("testcase"):
        for skip in case.findall("skipped"):
            name = case.get("name", "").split("[")[0]
            message = (skip.get("message") or "").removeprefix("Skipped: ")
            listed = name in known or (bool(reasons) and message.startswith(reasons))
            unexpected += not listed
            print(f"skipped: {case.get('classname')}::{case.get('name')}: {skip.get('message')}")
            if not listed:
                print(f"  not listed in {expected}: list it with its reason, or make it run")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
