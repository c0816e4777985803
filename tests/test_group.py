"""Ranks agree: what one process gathers from itself, two gather from each other."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

from ftray.group import Alone

RANK = """
import json, sys
import torch.distributed as dist
from ftray.group import TorchGroup
rank, port = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
group = TorchGroup()
print(json.dumps([
    group.rank, group.size, group.gather({"rank": rank}), group.any(rank == 1), group.any(False),
    group.total([0.1, rank, 1e-17]),
]))
dist.destroy_process_group()
"""


def test_alone() -> None:
    group = Alone()
    assert (group.rank, group.size) == (0, 1)
    assert group.gather("x") == ["x"]
    assert (group.any(True), group.any(False)) == (True, False)
    assert group.total([1, 0.5]) == [1.0, 0.5]


def test_two_ranks() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for index, (output, errors) in enumerate(outputs):
        assert output, errors
        gathered = [{"rank": 0}, {"rank": 1}]
        assert json.loads(output) == [index, 2, gathered, True, False, [0.2, 1.0, 2e-17]]
