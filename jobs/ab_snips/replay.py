"""Held-out SNIPS rows as users of an endpoint: is a tuned model better than the base, and which of two is better?

FTRAY_SHARED=../shared python jobs/ab_snips/replay.py          trains, sweeps, serves, replays; writes results.json

Each row is one user, asks once, and tells whether the answer was right. The first experiment has base, default and
sweep winner as arms and promotes its winner; the second has both tuned models and the users that are left.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.errors import InputError
from ftray.serve.client import Endpoint

HERE = Path(__file__).resolve().parent
USERS_AT_A_TIME = 8
LOOK_EVERY = 20
"""Users between two looks at the report: it may be looked at as often as one likes."""
FOR_THE_FIRST = 300
"""Users that the first experiment may have; the others are the second one's."""
Record = dict[str, Any]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--users", type=int, help="only so many rows: shows that it works")
    asked = parser.parse_args()
    os.environ.setdefault("FTRAY_SHARED", str(HERE.parents[2] / "shared"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arms = make_adapters(asked.storage)
    users = held_out_rows()
    random.Random(0).shuffle(users)
    users = users[: asked.users]
    first = users[: len(users) * FOR_THE_FIRST // 700 if asked.users else FOR_THE_FIRST]
    with served(asked.storage, asked.port, [arm["adapter"] for arm in arms.values()]) as (url, models):
        base = models[0]
        results = {
            "schema": "ftray/ab_snips/1",
            "adapters": arms,
            "base_against_tuned": run_experiment(
                url,
                {
                    "name": "base-or-tuned",
                    "arms": [
                        {"name": "base", "model": base},
                        *({"name": name, "model": f"{base}:{arm['adapter']}"} for name, arm in arms.items()),
                    ],
                    "control": "base",
                    "promote": {"alias": "champion"},
                },
                first,
            ),
            "default_against_sweep": run_experiment(
                url,
                {
                    "name": "which-tuned",
                    "arms": [{"name": name, "model": f"{base}:{arm['adapter']}"} for name, arm in arms.items()],
                    "control": "default",
                },
                users[len(first) :],
            ),
        }
        with Endpoint(url) as endpoint:
            aliases = endpoint.get("/v1/adapters")["aliases"]
            results["champion"] = next((one for one in aliases if one["alias"] == "champion"), None)
    if asked.users is None:
        (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tell(results)


def make_adapters(storage: Path) -> dict[str, Record]:
    """Train the job, and sweep around it; return both adapters as the registry names them."""
    trained = ftray("train", str(HERE / "job.yaml"), storage=storage)
    swept = ftray("sweep", str(HERE / "job.yaml"), storage=storage)
    assert swept["winner"] is not None, swept["reasons"]
    winner = swept["winner"]
    assert winner["trial_id"] != swept["default"]["trial_id"], "the sweep found nothing but the job itself"
    found = ftray(
        "adapters", "import", winner["adapter"]["path"], "--name", "ab-snips-sweep",
        "--model", f"{os.environ['FTRAY_SHARED']}/models/stories3M", storage=storage,
    )  # fmt: skip
    named = trained["registered"]
    return {
        "default": {
            "adapter": f"{named['name']}@{named['digest']}",
            "verdict": trained["verdict"],
            "validation": trained["selected"]["value"],
        },
        "sweep": {
            "adapter": f"{found['name']}@{found['digest']}",
            "config": winner["config"],
            "validation": winner["validation"]["value"],
            "recommended": swept["recommended"],
        },
    }


def ftray(*words: str, storage: Path) -> Record:
    """Return the document of a command."""
    command = [sys.executable, "-m", "ftray", *words, "--json", "--storage", str(storage)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}: {done.stdout.decode()[:2000]}"
    record: Record = json.loads(done.stdout)
    return record


def held_out_rows() -> list[Record]:
    file = Path(os.environ["FTRAY_SHARED"]) / "data" / "snips" / "heldout.jsonl"
    return [{"row": index, **json.loads(line)} for index, line in enumerate(file.read_text().splitlines())]


@contextmanager
def served(storage: Path, port: int, adapters: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Serve the adapters; yield the address and the models' names."""
    command = [sys.executable, "-m", "ftray", "serve", str(HERE / "job.yaml"), "--json", "--storage", str(storage)]
    command += ["--port", str(port)]
    for adapter in adapters:
        command += ["--adapter", adapter]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield ready["url"], ready["models"]
    finally:
        process.terminate()
        code = process.wait(timeout=60)
        assert code == 0, f"ftray serve ended with {code}"


def run_experiment(url: str, spec: Record, users: list[Record]) -> Record:
    """Let users ask, and tell how it went, until there is a verdict or nobody is left."""
    seconds: list[float] = []
    with Endpoint(url) as endpoint:
        endpoint.post("/v1/experiments", spec)
        report: Record = {}
        looks, late = [], 0
        with ThreadPoolExecutor(USERS_AT_A_TIME) as pool:
            for begin in range(0, len(users), LOOK_EVERY):
                some = users[begin : begin + LOOK_EVERY]
                for took, took_part in pool.map(lambda user: one_user(url, spec["name"], user), some):
                    seconds.append(took)
                    late += not took_part
                report = endpoint.get(f"/v1/experiments/{spec['name']}/report")
                looks.append({"users": min(begin + LOOK_EVERY, len(users)), "verdict": report["verdict"]})
                if report["verdict"] != "collecting":
                    break
        report.pop("history", None)
        return {
            "users": looks[-1]["users"],
            "after_the_end": late,
            "looks": looks,
            "seconds_median": statistics.median(seconds),
            "report": report,
        }


def one_user(url: str, experiment: str, user: Record) -> tuple[float, bool]:
    """Ask once, tell whether it was right; return the seconds of the answer, and whether the user took part."""
    with Endpoint(url) as endpoint:
        began = time.perf_counter()
        answer = endpoint.post(
            "/v1/chat/completions",
            {
                "model": f"exp:{experiment}",
                "messages": [{"role": "user", "content": f"Which intent is this? {user['text']}"}],
                "temperature": 0,
                "max_tokens": 12,
            },
            headers={"X-Ftray-Unit": f"row-{user['row']}"},
        )
        seconds = time.perf_counter() - began
        said = answer["choices"][0]["message"]["content"]
        outcome = {
            "response_id": answer["id"],
            "value": said.strip().casefold() == user["intent"].casefold(),
            "idempotency_key": f"{experiment}-row-{user['row']}",
        }
        try:
            endpoint.post("/v1/feedback", outcome)
        except InputError:
            # A winner ends the experiment while others ask: who comes then gets the winner, and is no unit.
            assert endpoint.get(f"/v1/experiments/{experiment}")["status"] == "promoted"
            return seconds, False
    return seconds, True


def tell(results: Record) -> None:
    for name in ("base_against_tuned", "default_against_sweep"):
        report = results[name]["report"]
        print(f"{name}: {report['verdict']} after {results[name]['users']} users. {report['reason']}")
        for arm in report["arms"]:
            print(
                f"  {arm['name']}: {arm['estimate']:.3f} ({arm['low']:.3f} to {arm['high']:.3f}), {arm['units']} users"
            )
    print(f"champion: {results['champion']}")


if __name__ == "__main__":
    main()
