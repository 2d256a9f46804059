"""The driver's side of a run: starts lanes through Tune and returns their events."""

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import tune
from ray.exceptions import ActorDiedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.backends.placement_groups import remove_orphans, remove_own
from orchestrator.backends.ray_cluster import ClusterError, nodes, staying_nodes
from orchestrator.execution.coordinator import Coordinator, Judge
from orchestrator.execution.dispatch import Job
from orchestrator.execution.lane import Forget, Lane, Slots
from orchestrator.execution.machines import RayMachines
from orchestrator.store.folder import functions_of
from orchestrator.store.own_files import key_of
from orchestrator.store.weights import WeightStore
from orchestrator.trials.admission import lanes_of
from orchestrator.trials.events import Event, PhaseBegan, PreflightDone, SessionBegan, SessionClosed
from orchestrator.trials.gang import Crew, Node, lane_plan, usable_devices
from orchestrator.trials.outcomes import AttemptEnd
from orchestrator.trials.records import Record

if TYPE_CHECKING:
    from orchestrator.sweep.config import Resources
    from orchestrator.trials.trial import Trial


#: Seconds between two searches for orphaned placement groups.
_ORPHANS_SECONDS = 10.0

#: Rounds of lanes in a row that end no trial before the run gives up.
_MAX_IDLE_ROUNDS = 3


class Run:
    """A run of trials on a connected cluster. The caller polls `events` until `done`."""

    def __init__(
        self,
        folder: Path,
        trials: Sequence["Trial"],
        records: Mapping[str, Record],
        resources: "Resources",
        began: float | None = None,
        preflight_seconds: float = 0.0,
        judge: Judge | None = None,
        must_reach: str = "",
    ) -> None:
        """
        Args:
          folder: the sweep's, visible to the driver and, for checkpoints, to the workers.
          trials: the trials to run, in order.
          records: of trials in earlier runs.
          resources: number of lanes (None computes it from the cluster), retries and the breaker.
          began: time when the command began, in seconds since 1970; now if None.
          preflight_seconds: duration of the preflight, which is part of the time since `began`.
          judge: early stopping; None ends no trial early.
          must_reach: why all machines must reach the place of states; empty if they need not.

        Raises:
          ClusterError: a trial needs more than the cluster has, or the storage of states does not answer.
        """
        self.folder = folder.resolve()
        if resources.checkpoints:
            try:
                WeightStore(self.folder, resources.checkpoints).kept()
            except OSError as error:
                raise ClusterError(f"resources.checkpoints {resources.checkpoints}: {error}") from error
        self._records, self._resources, self._judge = records, resources, judge
        self._must_reach = must_reach
        self._began, self._preflight_seconds = began or time.time(), preflight_seconds
        self._stopping, self._closing = threading.Event(), threading.Event()
        self._nodes = nodes()
        self.crews: list[Crew] = lane_plan(trials, self._nodes, resources.lanes)
        for gang, members, count in self.crews:
            if count == 0:
                have = ", ".join(f"{node.cpus:g} CPU {node.gpus:g} GPU" for node in self._nodes)
                raise ClusterError(f"{len(members)} trial(s) need {gang}; the cluster has nodes of {have}")
        #: Number of trials at a time, at most.
        self.lanes = lanes_of(self.crews, self._nodes, resources.lanes)
        self._devices = usable_devices(self.crews, self._nodes, resources.lanes)
        self._mark = uuid.uuid4().hex
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        """Starts the run. The journal is open when this returns.

        Raises:
          ClusterError: the cluster does not start the coordinator.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._coordinator = (
            ray.remote(Coordinator)
            .options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
            .remote(
                str(self.folder),
                self._resources.breaker,
                checkpoints=self._resources.checkpoints,
                keep=self._resources.keep,
                judge=self._judge,
                hang_seconds=60 * self._resources.hang_minutes,
                machines=RayMachines(key_of(self.folder)),
                mark=self._mark,
                ended={trial for trial, record in self._records.items() if record.settled},
                nodes=staying_nodes,
                limit=self._resources.lanes,
            )
        )
        try:
            self._note(SessionBegan(time=time.time(), began=self._began, lanes=(self.lanes,)))
        except ActorDiedError as error:
            if error.actor_init_failed:
                raise
            raise ClusterError(
                "the cluster does not start the run's coordinator, as happens if only one side uses tokens "
                f"(RAY_AUTH_MODE): {error}"
            ) from error
        if self._preflight_seconds:
            self._note(PreflightDone(time=time.time(), seconds=self._preflight_seconds))
        self._thread.start()

    def _note(self, event: Event) -> None:
        ray.get(self._coordinator.note.remote(event))

    @property
    def done(self) -> bool:
        """True when the run has ended."""
        return not self._thread.is_alive()

    def events(self) -> list[Event]:
        """Returns the events since the last call."""
        fresh: list[Event] = ray.get(self._coordinator.drain.remote())
        return fresh

    def drain(self) -> None:
        """Starts no more trials. Those in flight go on to their end."""
        self._stopping.set()
        ray.get(self._coordinator.stop.remote(after_flight=True))

    def stop(self, timeout_seconds: float = 8.0) -> None:
        """Cancels trials in flight. Waits until that is on record, but not for the workers."""
        self._stopping.set()
        ray.get(self._coordinator.stop.remote(), timeout=timeout_seconds)

    def close(self, timeout_seconds: float = 8.0) -> None:
        """Records the end of the session. This is the last call to a run."""
        self._closing.set()
        ray.get(self._coordinator.note.remote(SessionClosed(time=time.time())), timeout=timeout_seconds)

    def _run(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="vitc-sweep-"))
        threading.Thread(target=_look_after, args=(self._closing,), daemon=True).start()
        try:
            self._run_lanes(scratch)
        except BaseException as error:
            self.error = error
        finally:
            # A stopped run is about to leave the cluster, which ends its job and removes its groups.
            if not self._closing.is_set():
                self._closing.set()
                remove_own()
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_lanes(self, scratch: Path) -> None:
        on_gpu = any(crew.gang.gpus for crew in self.crews)
        only = "GPU" if all(crew.gang.gpus for crew in self.crews) else "core"
        self._note(
            PhaseBegan(
                time=time.time(),
                lanes=self.lanes,
                devices=self._devices,
                device="mixed" if on_gpu and only == "core" else only,
            )
        )
        trials = [trial for crew in self.crews for trial in crew.trials]
        jobs, ended = jobs_of(trials, self._records, self._resources.retries, self._nodes)
        for start in range(0, len(jobs), 1000):
            ray.get(self._coordinator.add.remote(jobs[start : start + 1000], ended))
        lane = tune.with_parameters(
            Lane,
            clerk=self._coordinator,
            folder=str(self.folder),
            key=key_of(self.folder),
            scratch=str(scratch / "train"),
            hang_seconds=60 * self._resources.hang_minutes,
            checkpoints=self._resources.checkpoints,
            mark=self._mark,
            code={digest: f.source() for digest, f in functions_of(trials).items()},
            must_reach=self._must_reach,
        )
        sliver = tune.PlacementGroupFactory([{"node:__internal_head__": 0.0001}])
        # Asked for, because trials whose first stage did not finish in an earlier run have ended already.
        left, idle_rounds = ray.get(self._coordinator.left.remote()), 0
        # One round is enough unless Tune loses lanes; their trials run in another round.
        while left and not self._stopping.is_set() and idle_rounds < _MAX_IDLE_ROUNDS:
            tune.Tuner(
                tune.with_resources(lane, sliver),
                tune_config=tune.TuneConfig(
                    search_alg=Slots(left, self._stopping),
                    num_samples=left,
                    max_concurrent_trials=min(self.lanes, left),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=f"tune-{uuid.uuid4().hex[:8]}",
                    storage_path=str(scratch / "tune"),
                    verbose=0,
                    callbacks=[Forget()],
                ),
            ).fit()
            before, left = left, ray.get(self._coordinator.left.remote())
            idle_rounds = idle_rounds + 1 if left == before else 0
        if left and not self._stopping.is_set():
            raise RuntimeError(f"lanes end without having run a trial; {left} trial(s) are left")


def _look_after(closing: threading.Event) -> None:
    """Removes what dead lanes reserve, those of earlier runs at once."""
    while True:
        remove_orphans()
        if closing.wait(_ORPHANS_SECONDS):
            return


def jobs_of(
    trials: Iterable["Trial"], records: Mapping[str, Record], retries: int, nodes: Sequence[Node] = ()
) -> tuple[list[Job], dict[str, tuple[AttemptEnd, str]]]:
    """Returns trials as jobs for the Coordinator, and the end and cause of ended first stages.

    `nodes` are the machines that decide the trials' numbers of GPUs.
    """
    jobs, ended = [], dict[str, tuple[AttemptEnd, str]]()
    for trial in trials:
        known = records.get(trial.id, Record())
        first = records.get(trial.after, Record())
        if first.outcome is not None and first.settled:
            ended[trial.after] = first.outcome, first.detail
        jobs.append(
            Job(
                trial.id,
                trial.arm,
                trial.config.model_dump_json(),
                known.attempts,
                known.whole_epochs,
                retries,
                group=f"{trial.cell_name} {trial.arm}",
                after=trial.after,
                is_first=trial.role == "first_stage",
                gang=trial.gang.on(nodes),
            )
        )
    return jobs, ended
