"""The Ray cluster of a run: connecting to it, its nodes and their clocks."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray._private import auto_init_hook
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.backends.local import ray_folder
from orchestrator.trials.gang import Node
from trainables.errors import UserError
from trainables.io.children import ROOT
from trainables.io.machine import usable_cpus

if TYPE_CHECKING:
    from orchestrator.backends.base import Clock


class ClusterError(UserError):
    """The cluster cannot run the sweep; the message says what is missing."""


# ---------------------------------------------------------------------------------------------------
# The driver


def connect(address: str | None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address`.

    Raises:
      ClusterError: there is no cluster there, it wants a token, or its dashboard is off.
    """
    if ray.is_initialized():
        return
    auto_init_hook.enable_auto_connect = _FROM_THE_MAIN_THREAD
    _undo.callback(_restore, _ray_variables())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray lowers the priority of its workers; a trial would crawl if the machine does any other work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    common = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": _WORKER_ENV}}
    common["job_config"] = _job_config()
    # Under `uv run`, Ray would upload the current folder to the workers, and refuse more than 512 MiB. Ray
    # reads the variable of that name when it is imported, which is too early for us.
    ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    os.environ.update({key: os.environ.get(key, value) for key, value in _WORKER_ENV.items()} | _FORCED)
    try:
        with _own_handlers(), _safe_path():
            if address is None:
                _start_here(common)
            else:
                ray.init(address=address, **common)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {address or 'this machine'} wants a token: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN where it is not in ~/.ray/auth_token"
        ) from error
    except Exception as error:  # Ray raises plain Exception if a node does not start in time
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    # Ray prints messages of its raylets into the progress display, even with log_to_driver=False.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if not ray.worker.get_dashboard_url():
        ray.shutdown()
        raise ClusterError("the Ray dashboard is off; start the head node with --include-dashboard=true")


class _FromTheMainThread:
    """True where a call of Ray may start it: as the user has set it, and in the main thread only.

    A thread of Tune that outlives its cluster would start a second one, with a warning, while a run stops.
    Ray looks at this at every such call.
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed

    def __bool__(self) -> bool:
        return self._allowed and threading.current_thread() is threading.main_thread()


_FROM_THE_MAIN_THREAD = _FromTheMainThread(auto_init_hook.enable_auto_connect)


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Keeps Ray from replacing the handler of SIGTERM, which would end the process without a word."""
    replace = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number == signal.SIGTERM else replace(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = replace


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Keeps a `random.py` in the current folder from being taken for Python's by the processes of Ray."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


class _Fixed(list[str]):
    """A list that Ray cannot extend."""

    def extend(self, _: Iterable[str]) -> None:
        """Adds nothing."""


def _job_config() -> JobConfig:
    """Returns a configuration by which workers import our packages, and nothing from the current folder.

    Ray would put the current folder first on the path of every worker, where a file of the user may have the
    name of a module of a library.
    """
    config = JobConfig()
    # An installed package is on the path anyway. There, it must not come before the standard library.
    config._py_driver_sys_path = _Fixed([str(ROOT)] if (ROOT / "pyproject.toml").is_file() else [])
    return config


def _start_here(common: dict[str, Any], tries: int = 2) -> None:
    """Starts a cluster on this machine. Tries again if a busy machine does not start Ray in time."""
    for left in reversed(range(tries)):
        try:
            # Without `local`, Ray would join a running cluster, or the one that RAY_ADDRESS names. The object
            # store can be small, because only small messages go through it.
            ray.init(
                address="local",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=256 * 2**20,
                num_cpus=usable_cpus(),
                _temp_dir=ray_folder(),
                **common,
            )
        except Exception:  # Ray raises plain Exception here
            ray.shutdown()
            if not left:
                raise
        else:
            return


#: Settings of Ray without which a run does not work, whatever the user has set.
_FORCED = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # A process on the head for every lane; our workers ask by themselves (`execution.worker`).
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

_WORKER_ENV = {
    **_FORCED,
    # Seconds between two checks for dead workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # Workers that find no room in this time give up, and the Coordinator decides anew what may start. A
    # machine that takes minutes to come is asked for again and again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}


#: Runtime environment of tasks and workers without a GPU. Ray lets them see every GPU of their machine.
NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}


def nodes() -> list[Node]:
    """Returns the machines of the connected cluster."""
    return [
        Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def staying_nodes() -> dict[str, Node]:
    """Returns the machines of the connected cluster by id, without those that are being drained."""
    leaving = ray._private.state.state.get_draining_nodes()
    return {
        node["NodeID"]: Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


class MachineGone(Exception):
    """A machine has left the cluster."""


def on_machine(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of one machine, by the id of its node, and returns its answer.

    Raises:
      MachineGone: the machine has left. Ray lists a machine that died for some seconds more.
    """
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return ray.get(task.remote(*arguments))
    except (
        ray.exceptions.TaskUnschedulableError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.WorkerCrashedError,
    ) as error:
        raise MachineGone(node) from error


def clocks() -> "list[Clock]":
    """Reads the clock of every machine of the connected cluster."""
    from orchestrator.backends.base import Clock

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            with contextlib.suppress(MachineGone):
                # The first call starts a process, which may take longer than the tolerance for clocks.
                on_machine(node["NodeID"], _now)
                asked = time.time()
                read = on_machine(node["NodeID"], _now)
                found.append(Clock(node["NodeManagerAddress"], asked, read, time.time()))
    return found


def _now() -> float:
    return time.time()


def shutdown() -> None:
    """Leaves the cluster, or shuts a local one down. Puts Ray's environment variables back."""
    ray.shutdown()
    _undo.close()


#: Calls that undo what `connect` changed in this process.
_undo = contextlib.ExitStack()


def _restore(environment: dict[str, str]) -> None:
    """Restores Ray's environment variables.

    A local cluster sets RAY_AUTH_MODE. With it, a process could not work on a cluster without tokens.
    """
    for name in _ray_variables().keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _ray_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
