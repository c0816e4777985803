"""Two real Ray Train workers with DeepSpeed: the losses of one process, and a killed worker changes nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftray.artifacts import digest_file, read_json
from ftray.errors import InputError, RunError
from ftray.finetune import finetune
from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.preflight import check
from ftray.run_records import write_records
from ftray.tracking import current_lines
from ftray.train.cluster import connect, require_place, require_resources
from ftray.train.launch import interface_of, launch, listen_at_node_address, own_secrets, worker_environment
from ftray.work import WorkOrder, work

pytestmark = [
    pytest.mark.ray,
    # Ray Train reads Ray Data's settings, whose own defaults warn.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
RAY_CPUS = 4
"""More than there may be: the workers of these tests are small."""
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
RECIPE = {"learning_rate": 1e-2, "max_steps": 12, "evaluate_every": 4, "checkpoint_every": 4}
STEP_OF_DEATH = 7


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start one Ray for this file, and put everything back."""
    import ray

    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    if ray.is_initialized():
        ray.shutdown()
    ray.init(
        num_cpus=RAY_CPUS, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    yield
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def job(world: Any, storage: Path, *, workers: int) -> LoadedJob:
    loaded: LoadedJob = world.load(
        method={"kind": "lora", "rank": 4}, train=RECIPE, compute={"workers": workers}, storage=str(storage)
    )
    return loaded


def run(loaded: LoadedJob) -> dict[str, Any]:
    return finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)


def order_of(loaded: LoadedJob) -> WorkOrder:
    """Prepare a run as `finetune` does, up to its workers."""
    run_id = run_id_of(loaded)
    prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
    prepared.run.create()
    write_records(loaded, prepared)
    return WorkOrder(loaded=loaded, plan=prepared.plan, run=prepared.run.root, run_id=run_id)


def numbers(root: Path) -> dict[tuple[int, str], float]:
    """Return every loss and norm of a run by step and name."""
    names = ("train/loss", "train/grad_norm", "val/loss")
    lines = current_lines(root / "metrics.jsonl")
    return {(line["step"], name): line[name] for line in lines for name in names if name in line}


def final_weights(root: Path) -> str:
    return digest_file(root / "checkpoints" / f"step-{RECIPE['max_steps']:08d}" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(world: Any, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(job(world, tmp_path_factory.mktemp("two-workers"), workers=2))


@pytest.mark.slow
def test_the_result_says_how_it_was_made(finished: dict[str, Any]) -> None:
    assert finished == read_json(Path(finished["path"]) / "result.json")
    assert (finished["status"], finished["failure"], finished["reused"]) == ("completed", None, False)
    assert (finished["engine"], finished["zero_stage"], finished["workers"]) == ("deepspeed", 0, 2)
    assert (finished["workers_seen"], finished["attempts"], finished["steps"]) == (2, 1, 12)
    assert "2" in finished["mode_reason"]
    assert len(finished["optimizer_bytes_per_rank"]) == 2
    assert min(finished["optimizer_bytes_per_rank"]) > 0
    assert finished["seconds"]["startup"] > 0
    assert (Path(finished["adapter"]["path"]) / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one_process(finished: dict[str, Any], world: Any, tmp_path: Path) -> None:
    alone = run(job(world, tmp_path, workers=0))
    assert alone["run_id"] == finished["run_id"]
    got, expected = numbers(Path(finished["path"])), numbers(Path(alone["path"]))
    assert len(expected) == 12 * 2 + 3
    assert got.keys() == expected.keys()
    losses = [key for key in expected if key[1] != "train/grad_norm"]
    assert [got[key] for key in losses] == pytest.approx([expected[key] for key in losses], rel=1e-5)
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-3)
    assert (finished["tokens"], finished["label_tokens"]) == (alone["tokens"], alone["label_tokens"])


def dying_worker(tries: str, *, times: int, after: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a worker that notes each try and kills itself in the first ones: rank 0 does, the others only work."""

    # Defined in here, so that it travels to the workers by value.
    def worker(payload: dict[str, Any]) -> dict[str, Any]:
        import ray.train

        if ray.train.get_context().get_world_rank():
            return {}
        with open(tries, "a") as file:
            file.write("x")
        time.sleep(after)
        if os.path.getsize(tries) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"done": True}

    return worker


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(
    finished: dict[str, Any], world: Any, tmp_path: Path
) -> None:
    order = order_of(job(world, tmp_path, workers=2))
    marker = str(tmp_path / "died")

    # Defined in here, so that it travels to the workers by value.
    def worker(payload: dict[str, Any]) -> dict[str, Any]:
        def die_once(line: dict[str, Any]) -> None:
            if line["step"] == STEP_OF_DEATH and not os.path.exists(marker):
                with open(marker, "w"):
                    os.kill(os.getpid(), signal.SIGKILL)

        return work(payload["order"], told=payload["told"], display=die_once)

    outcome = launch(worker, {"order": order}, plan=order.plan, run=order.run)
    assert Path(marker).exists()
    assert (outcome["status"], outcome["steps"], outcome["workers_seen"]) == ("completed", 12, 2)
    events = [line for line in current_lines(order.run / "metrics.jsonl") if line["kind"] == "event"]
    assert [(event["attempt"], event["event"]) for event in events] == [(1, "started"), (2, "resumed at step 4")]
    undisturbed = Path(finished["path"])
    assert final_weights(order.run) == final_weights(undisturbed)
    assert numbers(order.run) == numbers(undisturbed)


@pytest.mark.slow
def test_an_error_with_a_sentence_is_not_tried_again(world: Any, cluster: None, tmp_path: Path) -> None:
    order = order_of(job(world, tmp_path, workers=1))
    tries = str(tmp_path / "tries")

    def worker(payload: dict[str, Any]) -> dict[str, Any]:
        with open(tries, "a") as file:
            file.write(f"{payload['told']}\n")
        raise RunError("the loss is not a number", kind="nonfinite", given=[["train", 3]], hint="Look at row 3.")

    with pytest.raises(RunError, match="the loss is not a number") as caught:
        launch(worker, {}, plan=order.plan, run=order.run)
    assert (caught.value.kind, caught.value.given, caught.value.hint) == ("nonfinite", [["train", 3]], "Look at row 3.")
    assert Path(tries).read_text() == "1\n"


@pytest.mark.slow
def test_workers_that_are_lost_too_often_end_the_run(world: Any, cluster: None, tmp_path: Path) -> None:
    order = order_of(job(world, tmp_path, workers=1))
    tries = tmp_path / "tries"
    # Ray Train does not replace a worker that dies while the group still starts.
    worker = dying_worker(str(tries), times=2, after=1.0)
    with pytest.raises(RunError) as caught:
        launch(worker, {}, plan=replace(order.plan, max_failures=0), run=order.run)
    assert caught.value.kind == "node"
    assert "max_failures" in caught.value.hint
    assert tries.read_text() == "x"


@pytest.mark.slow
def test_a_worker_that_dies_while_its_group_starts_is_replaced(world: Any, cluster: None, tmp_path: Path) -> None:
    order = order_of(job(world, tmp_path, workers=1))
    tries = tmp_path / "tries"
    worker = dying_worker(str(tries), times=1, after=0.0)
    # The whole cluster: what the group that died still held would be missing for ever.
    plan = replace(order.plan, max_failures=1, workers=2, min_workers=2, cpus_per_worker=RAY_CPUS / 2)
    interrupt = signal.getsignal(signal.SIGINT)
    assert launch(worker, {}, plan=plan, run=order.run) == {"done": True}
    assert tries.read_text() == "xx"
    # Ray Train's own handler holds a controller that has ended, and that its workers.
    assert signal.getsignal(signal.SIGINT) is interrupt


def hold_all_cpus() -> Any:
    """Take every CPU of the cluster, as another job does; return what holds them."""
    import ray

    @ray.remote(num_cpus=RAY_CPUS)
    class Other:
        pass

    other = Other.remote()
    ray.get(other.__ray_ready__.remote(), timeout=60)
    return other


@pytest.mark.slow
def test_workers_wait_for_what_another_job_holds(
    world: Any, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    order = order_of(job(world, tmp_path, workers=1))
    other = hold_all_cpus()
    # Ray Train gives up after two waits of a second.
    release = threading.Timer(8, ray.kill, [other])
    release.start()
    try:
        assert launch(lambda payload: {"done": True}, {}, plan=order.plan, run=order.run) == {"done": True}
    finally:
        release.cancel()
        ray.kill(other)


@pytest.mark.slow
def test_workers_do_not_wait_for_ever(
    world: Any, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr("ftray.train.launch.MOST_WAITS", 1)
    order = order_of(job(world, tmp_path, workers=1))
    other = hold_all_cpus()
    try:
        with pytest.raises(RunError) as caught:
            launch(lambda payload: {"done": True}, {}, plan=order.plan, run=order.run)
    finally:
        ray.kill(other)
    assert caught.value.kind == "node"
    assert "no room" in caught.value.hint


def test_an_address_is_that_of_an_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_gloo_listens_where_the_cluster_looks_for_this_node(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "to be put back")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    listen_at_node_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    listen_at_node_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


def test_more_workers_than_there_can_be_are_refused_without_waiting(world: Any, cluster: None, tmp_path: Path) -> None:
    loaded = job(world, tmp_path / "runs", workers=RAY_CPUS + 1)
    started = time.monotonic()
    with pytest.raises(InputError, match=f"{RAY_CPUS + 1} workers need") as caught:
        run(loaded)
    assert time.monotonic() - started < 20
    assert (caught.value.kind, caught.value.path) == ("too_few_resources", "compute.workers")
    assert caught.value.allowed["workers"] == RAY_CPUS
    assert not (tmp_path / "runs").exists()


def test_a_connection_that_is_there_is_used(tiny: ModuleType, cluster: None) -> None:
    assert connect() is False
    require_place(tiny.plan(workers=RAY_CPUS), say=pytest.fail)


@pytest.mark.parametrize(
    ("there", "changes", "most"),
    [
        ([{"CPU": 3.0}], {}, None),
        ([{"CPU": 2.0}], {}, 2),
        ([{"CPU": 0.0}], {}, 0),
        ([{"CPU": 8.0}], {"gpus_per_worker": 1.0}, 0),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus_per_worker": 1.0}, 2),
        ([{"CPU": 8.0, "GPU": 3.0}], {"gpus_per_worker": 1.0}, None),
        ([{"CPU": 8.0}], {"cpus_per_worker": 4.0}, 2),
        ([{"CPU": 1.0}], {"min_workers": 1}, None),
        # Enough in all, but a worker stands on one node.
        ([{"CPU": 2.0}] * 6, {"cpus_per_worker": 4.0}, 0),
        ([{"CPU": 5.0}] * 2, {"cpus_per_worker": 3.0}, 2),
        ([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 9.0}], {"gpus_per_worker": 1.0}, 1),
        ([{"CPU": 2.0}, {"CPU": 1.0}], {}, None),
    ],
    ids=str,
)
def test_what_a_cluster_can_hold(
    tiny: ModuleType, there: list[dict[str, float]], changes: dict[str, Any], most: int | None
) -> None:
    plan = replace(tiny.plan(workers=3), **changes)
    require: Callable[[], None] = lambda: require_resources(plan, there, "the cluster")  # noqa: E731
    if most is None:
        require()
        return
    with pytest.raises(InputError) as caught:
        require()
    assert caught.value.allowed["workers"] == most
    assert ("workers: 0" if most == 0 else f"to {most} or fewer") in caught.value.hint


def test_workers_elsewhere_keep_their_own_path(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in own_secrets().names:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("HF_TOKEN", "token")
    monkeypatch.setenv("PYTHONPATH", "/here")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = worker_environment(has_gpu=False)
    assert here["PYTHONPATH"] == "/here"
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    elsewhere = worker_environment(has_gpu=False)
    assert elsewhere["PYTHONPATH"] == "/here"
    # What a worker is told as its environment can be listed: tokens go with its work.
    assert not {"WANDB_API_KEY", "HF_TOKEN"} & {*here, *elsewhere}
    assert own_secrets().names == ["HF_TOKEN", "WANDB_API_KEY"]
    assert "token" not in repr(own_secrets())
    assert elsewhere["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]
    assert "PATH" in here
    assert "PATH" not in elsewhere


@pytest.mark.slow
def test_tokens_reach_workers_with_their_work(
    world: Any, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(payload: dict[str, Any]) -> dict[str, Any]:
        import ray

        shown = ray.get_runtime_context().runtime_env.get("env_vars", {})
        return {"token": os.environ.get("WANDB_API_KEY"), "format": shown.get("FTRAY_LOG"), "shown": sorted(shown)}

    order = order_of(job(world, tmp_path, workers=1))
    # The Ray of this test had started before: its workers inherit neither.
    monkeypatch.setenv("WANDB_API_KEY", "from-here")
    monkeypatch.setenv("FTRAY_LOG", "json")
    outcome = launch(worker, {}, plan=order.plan, run=order.run)
    assert (outcome["token"], outcome["format"]) == ("from-here", "json")
    assert "WANDB_API_KEY" not in outcome["shown"]
