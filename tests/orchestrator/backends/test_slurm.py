"""The batch script for Slurm, with programs in the place of Slurm, Ray and the run."""

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "cluster" / "slurm.sbatch"

#: `srun` runs its command once; `ray` its entrypoint, as on the head; a run lasts until it is stopped.
PROGRAMS = {
    "srun": 'exec "$@"',
    "scontrol": '[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "$*" >> "$LOG"',
    "ray": 'echo "ray $*" >> "$LOG"; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    "vitc-sweep": """
echo "vitc-sweep $*" >> "$LOG"
if [ "$1" = stop ]; then [ -z "${UNTAKEN-}" ] || exit 2; echo > "$STOP"; exit; fi
[ -n "${CODE-}" ] && exit "$CODE"
echo running
read -r _ < "$STOP"
exit 130
""",
}


@pytest.fixture
def environment(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        program = folder / name
        program.write_text(f"#!/usr/bin/env bash\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    os.mkfifo(tmp_path / "stop")
    slurm = {"JOB_ID": "4711", "JOB_NODELIST": "node[1-2]", "NNODES": "2", "CPUS_PER_TASK": "8"}
    return os.environ | {
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "STOP": str(tmp_path / "stop"),
        "VITC_SWEEP_TMP": str(tmp_path),
    }


def start(environment, folder):
    return subprocess.Popen(
        ["bash", SCRIPT, "my.yaml", "runs/my", "--points", "4"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def test_before_the_limit_the_run_is_stopped_and_the_job_queued_again(environment, tmp_path):
    job = start(environment, tmp_path)
    assert job.stdout.readline() == "running\n"
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 75
    began, ran, stopped, queued = (tmp_path / "log").read_text().splitlines()
    assert began.startswith(
        "ray symmetric-run --address node1:24711 --min-nodes 2 --num-cpus 8 -- vitc-sweep run"
    )
    assert ran == "vitc-sweep run my.yaml --address auto --out runs/my --points 4"
    assert stopped == "vitc-sweep stop runs/my"
    assert queued == "requeue 4711"
    assert not list(tmp_path.glob("vs*"))


def test_a_run_without_the_folder_is_ended_by_the_signal(environment, tmp_path):
    job = start({**environment, "UNTAKEN": "yes"}, tmp_path)
    assert job.stdout.readline() == "running\n"
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 75
    assert (tmp_path / "log").read_text().splitlines()[-1] == "requeue 4711"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_ends_by_itself_ends_the_job_with_its_code(environment, tmp_path, code):
    job = start({**environment, "CODE": str(code)}, tmp_path)
    job.communicate(timeout=60)
    assert job.returncode == code
    assert "requeue" not in (tmp_path / "log").read_text()


def test_ray_accepts_the_options():
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    given = ["--address", "node1:24711", "--min-nodes", "2", "--num-cpus", "8"]
    assert curate_and_validate_ray_start_args(given) == ["--num-cpus", "8"]
