"""Experiments over HTTP: sticky units, weights that change, races, blindness, shadows, ends, and what they set off."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_world import BASE, World, chat, client_of, events, experiment, tell, until

from ftray.endpoint import KeepAnswers
from ftray.serve.api.keys import Keyring, add_key
from ftray.serve.api.limits import Limits
from ftray.serve.experiment.spec import Exposure
from ftray.serve.outcomes.async_outcomes import ThreadedOutcomes
from ftray.serve.outcomes.store import open_outcomes


async def begin(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    """Begin an experiment; return its record."""
    answer = await client.post("/v1/experiments", json=experiment(**more))
    assert answer.status_code == 201, answer.text
    record: dict[str, Any] = answer.json()
    return record


async def ask(
    client: httpx.AsyncClient, unit: str | None, *, model: str = "exp:greeting", **more: Any
) -> httpx.Response:
    """Ask as a unit."""
    headers = {"x-ftray-unit": unit} if unit is not None else {}
    answer = await client.post("/v1/chat/completions", json=chat(model, **more), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def who(here: World, answer: httpx.Response) -> str:
    """Return the arm that an answer's words betray."""
    first = answer.json()["choices"][0]["message"]["content"].split(" ")[0]
    return {"base": "base", **{digest[:12]: name for name, digest in here.digests.items()}}[first]


def test_units_are_split_stick_and_do_not_move_when_weights_do(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            record = await begin(client)
            assert {arm["digest"] for arm in record["arms"]} == {None, here.digests["tuned"]}
            assert "salt" not in record
            before = {f"u{n}": who(here, await ask(client, f"u{n}")) for n in range(40)}
            assert 4 < Counter(before.values())["base"] < 36
            changed = await client.post("/v1/experiments/greeting/weights", json={"weights": {"base": 1, "tuned": 19}})
            assert changed.json()["weights"] == {"base": 1.0, "tuned": 19.0}
            assert {unit: who(here, await ask(client, unit)) for unit in before} == before
            late = Counter([who(here, await ask(client, f"late{n}")) for n in range(40)])
            assert late["tuned"] > 30
        # Another process, which has not seen any of them.
        async with here.client() as client:
            assert {unit: who(here, await ask(client, unit)) for unit in before} == before
            report = (await client.get("/v1/experiments/greeting/report")).json()
            assert sum(arm["units"] for arm in report["arms"]) == 80

    tell(tmp_path, story)


class Held(ThreadedOutcomes):
    """A store that commits an exposure when it is told to."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.go_on = asyncio.Event()
        self.asked = 0

    async def expose(self, name: str, *, unit: str, arm: str, propensity: float, response_id: str) -> Exposure:
        self.asked += 1
        await self.go_on.wait()
        return await super().expose(name, unit=unit, arm=arm, propensity=propensity, response_id=response_id)


def test_nothing_is_shown_before_the_exposure_is_on_the_disk_and_the_engine_does_not_wait(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        held = Held(here.store)
        async with here.client(outcomes=held) as client:
            await begin(client)
            asked = asyncio.create_task(ask(client, "u1", stream=True))
            await until(lambda: here.engine.running == 1 and held.asked == 1)
            await asyncio.sleep(0.05)
            assert not asked.done()
            held.go_on.set()
            answer = await asked
            assert events(answer.text)[-1] == "[DONE]"

    tell(tmp_path, story)


def test_first_requests_that_race_on_two_replicas_get_one_arm(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        first, second = here.app(), here.app()
        async with client_of(first) as one, client_of(second) as other:
            await begin(one)
            await ask(other, "warm")
            # The replicas know different weights: their hashes would say different arms.
            await one.post("/v1/experiments/greeting/weights", json={"weights": {"base": 1, "tuned": 19}})
            moved = 0
            for number in range(40):
                pair = await asyncio.gather(ask(one, f"u{number}"), ask(other, f"u{number}"))
                arms = {who(here, answer) for answer in pair}
                assert len(arms) == 1
            for app in (one, other):
                text = (await app.get("/metrics")).text
                lines = [line for line in text.splitlines() if line.startswith("ftray_reassigned_total{")]
                moved += int(float(lines[0].split(" ")[1])) if lines else 0
            assert moved > 0, "in some race the two asked different arms first"
            assert here.engine.running == 0

    tell(tmp_path, story)


def test_the_second_request_of_a_unit_starts_at_its_own_arm_and_is_noted(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            await begin(client)
            arm = who(here, await ask(client, "u1"))
            other = "tuned" if arm == "base" else "base"
            weights = {arm: 1, other: 19}
            await client.post("/v1/experiments/greeting/weights", json={"weights": weights})
            here.engine.asks.clear()
            answer = await ask(client, "u1")
            assert who(here, answer) == arm
            assert len(here.engine.asks) == 1, "nobody else was asked meanwhile"
            outcome = {"response_id": answer.json()["id"], "value": True, "idempotency_key": "k"}
            assert (await client.post("/v1/feedback", json=outcome)).status_code == 200

    tell(tmp_path, story)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_blinded_but_for_the_admin_scope(stream: bool, tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        path = tmp_path / "keys.json"
        _, user = add_key(path, name="ann", scopes=["infer"])
        _, admin = add_key(path, name="root", scopes=["admin"])
        app = here.app(keys=Keyring(path))
        async with client_of(app, key=admin) as root:
            await begin(root)
            shown = await ask(root, "u1", stream=stream)
            assert shown.headers["x-ftray-arm"] in ("base", "tuned")
            root.headers["authorization"] = f"Bearer {user}"
            blind = await ask(root, "u1", stream=stream)
            assert "x-ftray-arm" not in blind.headers
            assert blind.headers["x-ftray-experiment"] == "greeting"
            digest = here.digests["tuned"]
            body = blind.text.replace(digest[:12], "") if stream else blind.text
            assert '"model":"exp:greeting"' in body
            assert '"system_fingerprint":null' in body
            assert digest not in body

    tell(tmp_path, story)


def test_without_keys_nobody_is_told_the_arm(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            await begin(client)
            assert "x-ftray-arm" not in (await ask(client, "u1")).headers

    tell(tmp_path, story)


def test_whose_request_it_is(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        path = tmp_path / "keys.json"
        _, key = add_key(path, name="ann", scopes=["admin"])
        async with client_of(here.app(keys=Keyring(path)), key=key) as client:
            await begin(client)
            await ask(client, "header", user="body", safety_identifier="safe")
            await ask(client, None, user="body", safety_identifier="safe")
            await ask(client, None, safety_identifier="safe")
            await ask(client, None)
            for unit in ("header", "body", "safe", "key:ann"):
                outcome = {"experiment": "greeting", "unit": unit, "value": 1, "idempotency_key": f"k-{unit}"}
                assert (await client.post("/v1/feedback", json=outcome)).json() == {"status": "recorded"}, unit
        async with here.client() as client:
            headers = {"x-ftray-unit": "Zoë".encode()}
            named = await client.post("/v1/chat/completions", json=chat("exp:greeting"), headers=headers)
            outcome = {"experiment": "greeting", "unit": "Zoë", "value": 1, "idempotency_key": "k-zoe"}
            assert named.status_code == 200
            assert (await client.post("/v1/feedback", json=outcome)).status_code == 200
            refused = await client.post("/v1/chat/completions", json=chat("exp:greeting"))
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "missing_unit"
            for unit in ("\x7f", "x" * 257):
                headers = {"x-ftray-unit": unit}
                refused = await client.post("/v1/chat/completions", json=chat("exp:greeting"), headers=headers)
                assert refused.status_code == 400

    tell(tmp_path, story)


def test_units_that_take_no_part_get_the_control_and_are_not_counted(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            await begin(client, include=0.3)
            answers = [await ask(client, f"u{number}") for number in range(60)]
            report = (await client.get("/v1/experiments/greeting/report")).json()
            counted = sum(arm["units"] for arm in report["arms"])
            assert 3 < counted < 40
            taken = []
            for number, answer in enumerate(answers):
                outcome = {"response_id": answer.json()["id"], "value": True, "idempotency_key": f"k{number}"}
                taken.append((await client.post("/v1/feedback", json=outcome)).status_code)
            assert Counter(taken) == {200: counted, 404: 60 - counted}
            assert {who(here, answer) for answer, status in zip(answers, taken, strict=True) if status == 404} == {
                "base"
            }

    tell(tmp_path, story)


def test_feedback_is_taken_once_for_each_key(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            rail = {"metric": "tickets", "direction": "lower", "limit": 5.0}
            await begin(client, guardrails=[rail])
            first = (await ask(client, "u1")).json()["id"]

            async def send(**more: Any) -> httpx.Response:
                body = {"response_id": first, "value": True, "idempotency_key": "k1", **more}
                return await client.post(
                    "/v1/feedback", json={key: value for key, value in body.items() if value is not None}
                )

            assert (await send()).json() == {"status": "recorded"}
            assert (await send()).json() == {"status": "duplicate"}
            assert (await send(value=1)).json() == {"status": "duplicate"}, "true is 1"
            assert (await send(value=False)).status_code == 409
            assert (await send(idempotency_key="k2", value=1.5)).status_code == 422
            assert (await send(idempotency_key="k2", metric="tickets", value=150)).status_code == 200
            assert (await send(idempotency_key="k3", metric="unheard_of", value=1)).status_code == 422
            assert (await send(idempotency_key="k3", metric="latency_seconds", value=1)).status_code == 422
            assert (await send(idempotency_key="k3", response_id="chatcmpl-none")).status_code == 404
            assert (await send(idempotency_key=None)).status_code == 400
            assert (await send(idempotency_key="k4", experiment="greeting", unit="u1")).status_code == 400, "one thing"
            assert (
                await send(response_id=None, experiment="greeting", unit="u9", idempotency_key="k5")
            ).status_code == 404

    tell(tmp_path, story)


def test_preferences_between_two_answers(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            await begin(client)
            found: dict[str, str] = {}
            for number in range(20):
                answer = await ask(client, f"u{number}")
                found.setdefault(who(here, answer), answer.json()["id"])
            body = {
                "experiment": "greeting", "unit": "rater", "chosen": found["tuned"], "rejected": found["base"],
                "idempotency_key": "p1",
            }  # fmt: skip
            assert (await client.post("/v1/preferences", json=body)).json() == {"status": "recorded"}
            assert (await client.post("/v1/preferences", json=body)).json() == {"status": "duplicate"}
            report = (await client.get("/v1/experiments/greeting/report")).json()
            assert report["preferences"]["wins"]["tuned"] == 1
            assert (
                await client.post("/v1/preferences", json=body | {"chosen": "none", "idempotency_key": "p2"})
            ).status_code == 404

    tell(tmp_path, story)


def test_shadows_answer_unseen_and_texts_are_kept_only_where_asked_for(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned", "dark")
        shadow = [{"name": "dark", "model": f"{BASE}:dark"}]
        async with here.client(keep=KeepAnswers(hours=1)) as client:
            await begin(client, shadow=shadow)
            answer = await ask(client, "u1", text="Which way?")
            await until(lambda: len(here.store.answers(answer.json()["id"])) == 2)
            kept = {one["arm"]: one for one in here.store.answers(answer.json()["id"])}
            assert set(kept) == {"dark", who(here, answer)}
            assert kept["dark"]["answer"].startswith(here.digests["dark"][:12])
            assert kept[who(here, answer)]["answer"] == answer.json()["choices"][0]["message"]["content"]
            assert kept["dark"]["prompt"] == "user: Which way?"
            assert [one.is_shadow for one in here.engine.asks] == [False, True]
            assert '{arm="dark",end="answered"' in (await client.get("/metrics")).text
        async with here.client() as client:
            answer = await ask(client, "u2")
            await until(lambda: len(here.engine.asks) == 4 and here.engine.running == 0)
            assert here.store.answers(answer.json()["id"]) == []
        async with here.client(limits=Limits(shadows=0)) as client:
            await ask(client, "u3")
            assert '{arm="dark",end="shed"' in (await client.get("/metrics")).text
            assert len(here.engine.asks) == 5

    tell(tmp_path, story)


def test_what_is_measured_reaches_the_report(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            rails = [
                {"metric": metric, "direction": "lower", "limit": 1e5}
                for metric in ("latency_seconds", "completion_tokens")
            ]
            await begin(client, guardrails=rails)
            for number in range(4):
                await ask(client, f"u{number}", stream=bool(number % 2), max_tokens=4)

            def measured() -> Any:
                return here.store.report("greeting")["measured"]

            await until(lambda: sum(arm["n"] for arm in measured().get("completion_tokens", {}).values()) == 4)
            assert {arm["mean"] for arm in measured()["completion_tokens"].values() if arm["n"]} == {4.0}

    tell(tmp_path, story)


async def settle(
    client: httpx.AsyncClient, here: World, value: Callable[[str, int], Any], *, units: int, **outcome: Any
) -> None:
    """Let units ask and say what came of it, until the experiment ends or there are no more of them."""
    for number in range(units):
        answer = await ask(client, f"u{number}")
        said = value(who(here, answer), number)
        body = {"response_id": answer.json()["id"], "value": said, "idempotency_key": f"k{number}"}
        taken = (await client.post("/v1/feedback", json=body | outcome)).status_code
        if here.store.experiment("greeting").status != "running":
            return
        assert taken == 200


def test_a_winner_is_promoted_by_itself_and_then_answers(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("other")
        here.put("tuned", verdict="inconclusive")
        await here.serve("tuned")
        async with here.client() as client:
            promoted = {"name": "other", "digest": here.digests["other"], "generation": 0}
            await client.post("/v1/adapters/champion/promote", json=promoted)
            await begin(client, promote={"alias": "champion"})
            await settle(client, here, lambda arm, number: arm == "tuned", units=70)
            await until(lambda: here.store.experiment("greeting").status == "promoted", seconds=10)
            alias = here.registry.aliases()["champion"]
            assert (alias["digest"], alias["generation"]) == (here.digests["tuned"], 2)
            assert alias["by"] == "experiment greeting"
            assert "winner of the experiment greeting" in alias["reason"]
            assert who(here, await ask(client, "u1", model=f"{BASE}:champion")) == "tuned"
            report = (await client.get("/v1/experiments/greeting/report")).json()
            assert (report["status"], report["verdict"], report["winner"]) == ("promoted", "winner", "tuned")
            assert {who(here, await ask(client, f"new{number}")) for number in range(8)} == {"tuned"}
            after = (await client.get("/v1/experiments/greeting/report")).json()
            assert after["arms"] == report["arms"], "nobody is exposed after the end"

    tell(tmp_path, story)


def test_a_guardrail_ends_it_and_rolls_the_alias_back(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("other", "tuned")
        async with here.client() as client:
            for name in ("other", "tuned"):
                promoted = {"name": name, "digest": here.digests[name]}
                assert (await client.post("/v1/adapters/champion/promote", json=promoted)).status_code == 200
            rail = {"metric": "tickets", "direction": "lower", "limit": 3.0, "action": "rollback"}
            await begin(client, guardrails=[rail], promote={"alias": "champion"})
            await settle(
                client,
                here,
                lambda arm, number: (10.0 if arm == "tuned" else 0.5) + number % 2,
                units=170,
                metric="tickets",
            )
            await until(lambda: here.store.experiment("greeting").status == "stopped", seconds=10)
            alias = here.registry.aliases()["champion"]
            assert alias["digest"] == here.digests["other"]
            assert alias["by"] == "experiment greeting"
            assert {who(here, await ask(client, f"new{number}")) for number in range(8)} == {"base"}, "the control"

    tell(tmp_path, story)


def test_stop_and_the_shapes_of_refusals(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            await begin(client)
            assert (await client.post("/v1/experiments", json=experiment())).status_code == 201, "the same is the same"
            assert (await client.post("/v1/experiments", json=experiment(margin=0.1))).status_code == 409
            for wrong, status in [
                ({"arms": {"base": BASE, "tuned": "tiny:nobody"}}, 404),
                ({"arms": {"base": BASE, "tuned": "exp:greeting"}}, 400),
                ({"control": "nobody"}, 400),
                ({"promote": {"alias": "tuned"}}, 400),
                ({"minimum_propensity": 0.5, "arms": {"base": BASE, "tuned": "tiny:tuned", "third": BASE}}, 400),
            ]:
                answer = await client.post("/v1/experiments", json=experiment("another", **wrong))
                assert answer.status_code == status, (wrong, answer.text)
            weights = "/v1/experiments/greeting/weights"
            assert (await client.post(weights, json={"weights": {"base": 1}})).status_code == 422
            assert (await client.post(weights, json={"weights": {"base": 1, "tuned": 1000}})).status_code == 422
            assert (await client.post("/v1/experiments/none/stop")).status_code == 404
            assert [one["name"] for one in (await client.get("/v1/experiments")).json()["data"]] == ["greeting"]
            stopped = await client.post("/v1/experiments/greeting/stop", json={"reason": "enough"})
            assert (stopped.json()["status"], stopped.json()["reason"]) == ("stopped", "enough")
            assert (await client.post("/v1/experiments/greeting/stop")).json()["reason"] == "enough"
            assert (await client.post(weights, json={"weights": {"base": 1, "tuned": 1}})).status_code == 409
            assert {who(here, await ask(client, f"u{number}")) for number in range(6)} == {"base"}

    tell(tmp_path, story)


def test_another_replica_hears_of_the_end_and_exposes_nobody(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with client_of(here.app()) as one, client_of(here.app()) as other:
            await begin(one)
            await ask(other, "u0")
            await one.post("/v1/experiments/greeting/stop")
            # The other one still believes that it runs; the store does not.
            assert {who(here, await ask(other, f"u{number}")) for number in range(1, 9)} == {"base"}
            assert sum(arm["units"] for arm in here.store.report("greeting")["arms"]) == 1  # type: ignore[attr-defined]

    tell(tmp_path, story)


def test_a_report_as_json_or_as_a_page(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client(page=lambda report, history: f"<h1>{report['experiment']}</h1>") as client:
            await begin(client)
            path = "/v1/experiments/greeting/report"
            assert (await client.get(path)).json()["verdict"] == "collecting"
            for answer in (
                await client.get(path, params={"format": "html"}),
                await client.get(path, headers={"accept": "text/html,application/xhtml+xml;q=0.9"}),
            ):
                assert answer.headers["content-type"].startswith("text/html")
                assert answer.text == "<h1>greeting</h1>"
            assert (await client.get(path, params={"format": "json"}, headers={"accept": "text/html"})).json()[
                "looks"
            ] == 0
            assert (await client.get(path, params={"format": "pdf"})).status_code == 400

    tell(tmp_path, story)


def test_arms_are_loaded_again_when_the_endpoint_starts_again(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            await begin(client)
        here.engine.loaded.clear()
        fresh = here.fresh_catalogue()
        async with here.client(catalogue=fresh) as client:
            assert {who(here, await ask(client, f"u{number}")) for number in range(24)} == {"base", "tuned"}

    tell(tmp_path, story)


def test_a_store_that_is_gone_is_503(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        store = open_outcomes("sqlite", tmp_path / "other")
        outcomes = ThreadedOutcomes(store)
        async with here.client(outcomes=outcomes) as client:
            await begin(client)
            await ask(client, "u1")
            # A table that is gone: every statement of the store fails from now on.
            writing = store._database.connect()
            writing.execute("DROP TABLE ftray_exposures")
            writing.close()
            answer = await client.post(
                "/v1/chat/completions", json=chat("exp:greeting"), headers={"x-ftray-unit": "u2"}
            )
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert here.engine.running == 0
        await outcomes.close()

    tell(tmp_path, story)
