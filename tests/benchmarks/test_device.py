"""The device benchmark without a device: its parts run, small, and one that goes wrong costs no other."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import device

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.device", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_the_quick_parts_about_results_run_and_hold_on_a_cpu(tmp_path):
    file = tmp_path / "device.json"
    done = run("--cpu", "--json", str(file), "--only", "repeat,environment,agree,trial")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(file.read_text())
    assert record["machine"]["card"] is None
    assert record["machine"]["torch"]
    # In their own order, whatever the order asked for.
    parts = {part["part"]: part for part in record["parts"]}
    assert list(parts) == ["environment", "trial", "agree", "repeat"]
    assert [part["status"] for part in parts.values()] == [""] * 4
    found = {
        (name, one["figure"], one["unit"]): one for name, part in parts.items() for one in part["figures"]
    }
    assert {one["status"] for one in found.values() if one["must"]} == {"ok"}
    # A network that has learnt tells most of ten digits apart in four epochs.
    assert found["trial", "conv, fp32: error after 4 epochs", "%"]["value"] < 40
    assert found["trial", "conv, fp32: loss of the last epoch", "nats"]["value"] < math.log(10)
    # Other kernels round otherwise: some difference, and no large one. Half precision: a larger one.
    other = found["agree", "conv, CPU against CPU without oneDNN: weights", "relative"]["value"]
    half = found["agree", "conv, bf16 against fp32: weights", "relative"]["value"]
    assert 0 < other < half < 1e-3
    assert found["repeat", "conv, fp32: deterministic, equal", ""]["value"] is True
    assert 0 < found["environment", "host time to start an operation", "µs"]["value"] < 1000
    table = done.stdout.splitlines()
    assert table[-1] == "all that must hold does"
    assert sum(line.startswith("agree ") for line in table) == len(parts["agree"]["figures"]) + 1


def test_without_time_nothing_is_measured_and_nothing_has_failed(tmp_path):
    file = tmp_path / "device.json"
    done = run("--json", str(file), "--limit-seconds", "1")
    assert done.returncode == 0, done.stderr
    parts = json.loads(file.read_text())["parts"]
    assert [part["part"] for part in parts] == list(device.PARTS)
    assert {part["status"] for part in parts} == {"not measured: no time left"}


def test_a_part_that_does_not_exist_is_refused():
    done = run("--only", "trial,sped")
    assert done.returncode == 2
    assert "no part is called sped" in done.stderr


#: Stands in for the process that runs parts: one fails, one hangs, one dies, one is well.
WORKER = """
import json, os, sys, time
for name in sys.argv[sys.argv.index("--worker") + 1].split(","):
    print(json.dumps({"machine": {"card": "a card", "driver": "1"}}), flush=True)
    print(json.dumps({"begin": name}), flush=True)
    figure = {"figure": "f", "value": 1.5, "unit": "s", "must": "<= 1", "status": "FAILED"}
    figure |= {"status": "ok"} if name != "agree" else {}
    print(json.dumps(figure), flush=True)
    if name == "trial":
        time.sleep(100)
    if name == "repeat":
        os._exit(3)
    status = "FAILED: ValueError: no" if name == "environment" else ""
    print(json.dumps({"end": name, "status": status}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{WORKER}")
    script.chmod(0o755)
    monkeypatch.setattr(device.sys, "executable", str(script))


def test_a_part_that_fails_hangs_or_dies_costs_no_other(stand_in, tmp_path, monkeypatch, capsys):
    parts = {name: device.PARTS[name] for name in ("environment", "trial", "agree", "repeat", "resume")}
    parts["trial"] = device.Part(device.trial, 0.1, limit=-4)
    monkeypatch.setattr(device, "PARTS", parts)
    file = tmp_path / "found.json"
    assert device.main(["--json", str(file), "--limit-seconds", "60"]) == 1
    found = {part["part"]: part for part in json.loads(file.read_text())["parts"]}
    assert {name: part["status"] for name, part in found.items()} == {
        "environment": "FAILED: ValueError: no",
        "trial": "not measured: stopped after 1 s",
        "agree": "",
        "repeat": "FAILED: its process ended with exit code 3",
        "resume": "",
    }
    # What each found before it went wrong is kept.
    assert all(part["figures"][0]["value"] == 1.5 for part in found.values())
    assert capsys.readouterr().out.splitlines()[-1].startswith("does not hold: agree: f; environment: FAILED")


def test_where_the_libraries_do_not_load_it_says_so_once(tmp_path, monkeypatch, capsys):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'ModuleNotFoundError: pydantic' >&2\necho x >> calls\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(device.sys, "executable", str(script))
    monkeypatch.setattr(device, "ROOT", tmp_path)
    assert device.main(["--json", str(tmp_path / "found.json"), "--limit-seconds", "60"]) == 1
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert {part["status"] for part in parts} == {"FAILED: no process comes up, exit code 1"}
    assert (tmp_path / "calls").read_text() == "x\n"
    assert "ModuleNotFoundError: pydantic" in capsys.readouterr().out


def bench(messages):
    return device.Bench(small=True, send=messages.append)


@pytest.mark.parametrize(
    ("value", "wanted", "must", "status"),
    [
        (0.5, {"most": 1}, "<= 1", "ok"),
        (1.5, {"most": 1}, "<= 1", "FAILED"),
        (math.nan, {"most": 1}, "<= 1", "FAILED"),
        (0.5, {"least": 1, "most": 2}, ">= 1, <= 2", "FAILED"),
        (False, {"equals": True}, "yes", "FAILED"),
        (0.9, {"goal": 1.0}, "goal >= 1", "not reached"),
        (7.0, {}, "", ""),
    ],
)
def test_what_must_hold_is_told_and_checked(value, wanted, must, status):
    messages = []
    bench(messages).say("x", value, **wanted)
    assert (messages[0]["must"], messages[0]["status"]) == (must, status)


def test_a_record_is_json_even_of_what_is_no_number(tmp_path):
    record = device.Record(1.0, file=tmp_path / "x.json")
    record.parts["trial"] = {"status": "", "seconds": 1.0, "figures": [{"value": math.nan}]}
    record.write()
    assert json.loads((tmp_path / "x.json").read_text())["parts"][0]["figures"] == [{"value": "nan"}]
