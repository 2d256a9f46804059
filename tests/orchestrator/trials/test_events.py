"""Events and their JSON: what is written stays as it was, and what earlier versions wrote reads as it did."""

import dataclasses
import json
import pickle
import typing
from typing import Any

import pytest

from orchestrator.cost.ledger import ledger
from orchestrator.monitor.explain import attempts_of
from orchestrator.store.journal import decode, encode
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    BreakerTripped,
    Chained,
    DeclarationMade,
    DeviceUsed,
    EpochDone,
    Event,
    InFlight,
    LaneOpened,
    LookTaken,
    Notice,
    PhaseBegan,
    PreflightDone,
    Pulse,
    RetryWanted,
    Sealed,
    SessionBegan,
    SessionClosed,
    Unknown,
    UntilSettled,
    from_json,
    time_of,
    to_json,
    trial_of,
)
from orchestrator.trials.records import fold
from trainables.base import DeviceUse, Epoch
from trainables.transforms.corruptions import KINDS

ROW = Epoch(
    epoch=2, step=38, lr=0.001, train_loss=1.5, val_loss=1.25, val_error_pct=12.5,
    val_raw_error_pct=13.5, train_seconds=0.5, val_seconds=0.1, test_error_pct=None,
)  # fmt: skip
LAST = Epoch(
    epoch=3, step=57, lr=1e-05, train_loss=1.0, val_loss=1.0, val_error_pct=10.5,
    val_raw_error_pct=11.5, train_seconds=0.5, val_seconds=0.1, test_error_pct=11.0,
    peak_memory_gib=3.25, extra={"clean": 10.0, "corruption/fog": 30.0},
)  # fmt: skip

#: One of every kind with its line; all but rows as written when events were plain dictionaries.
LINES: list[tuple[Event, str]] = [
    (Sealed(sizes={"000001.jsonl": 4096}), '2180cda6 {"kind":"seal","sizes":{"000001.jsonl":4096}}'),
    (Chained(sha256="9f86d081"), '5185948e {"kind":"chain","sha256":"9f86d081"}'),
    (
        DeclarationMade(made=104.0, results=17, declaration={"points": 16, "primary": None}),
        '3166ad08 {"kind":"declared","made":104.0,"results":17,"declaration":{"points":16,"primary":null}}',
    ),
    (
        SessionBegan(time=105.0, began=100.0, lanes=(2, 1)),
        'ab03784b {"kind":"session","time":105.0,"began":100.0,"lanes":[2,1]}',
    ),
    (
        PreflightDone(time=105.0, seconds=3.5),
        '0c77d8a0 {"kind":"preflight","time":105.0,"seconds":3.5}',
    ),
    (
        PhaseBegan(time=106.0, lanes=2, devices=4, device="core"),
        'bde2db6e {"kind":"phase","time":106.0,"lanes":2,"devices":4,"device":"core"}',
    ),
    (
        LaneOpened(time=106.5, lane="1f2e3d4c", devices=2.0),
        '74fa2511 {"kind":"lane","time":106.5,"lane":"1f2e3d4c","devices":2.0}',
    ),
    (
        AttemptBegan(trial="0a1b", attempt=1, lane="lane-0", node="9f3c", time=107.0),
        'efdd821e {"kind":"attempt","trial":"0a1b","attempt":1,"lane":"lane-0","node":"9f3c","time":107.0}',
    ),
    (
        DeviceUsed(
            trial="0a1b", attempt=1,
            use=DeviceUse(
                name="NVIDIA H100 80GB HBM3", dtype="bf16", driver="580.65.06", cuda="13.0", tf32="conv"
            ),
        ),
        '92da25e6 {"kind":"device","trial":"0a1b","attempt":1,"use":{"name":"NVIDIA H100 80GB HBM3",'
        '"dtype":"bf16","driver":"580.65.06","cuda":"13.0","tf32":"conv","deterministic":false}}',
    ),
    (
        EpochDone(trial="0a1b", attempt=1, row=ROW),
        '89151338 {"kind":"epoch","trial":"0a1b","attempt":1,"row":{"epoch":2,"step":38,"lr":0.001,'
        '"train_loss":1.5,"val_loss":1.25,"val_error_pct":12.5,"val_raw_error_pct":13.5,'
        '"train_seconds":0.5,"val_seconds":0.1,"test_error_pct":null,"peak_memory_gib":null,'
        '"extra":null}}',
    ),
    (
        EpochDone(trial="0a1b", attempt=1, row=LAST),
        'ed5694f0 {"kind":"epoch","trial":"0a1b","attempt":1,"row":{"epoch":3,"step":57,"lr":1e-05,'
        '"train_loss":1.0,"val_loss":1.0,"val_error_pct":10.5,"val_raw_error_pct":11.5,'
        '"train_seconds":0.5,"val_seconds":0.1,"test_error_pct":11.0,"peak_memory_gib":3.25,'
        '"extra":{"clean":10.0,"corruption/fog":30.0}}}',
    ),
    (
        Pulse(time=120.0, in_flight={"0a1b": InFlight(19, 38, 119.5)}),
        '73bf7134 {"kind":"pulse","time":120.0,"in_flight":{"0a1b":[19,38,119.5]}}',
    ),
    (
        AttemptEnded(
            trial="0a1b", attempt=1, end="finished", detail="", seconds=20.0, time=127.0, final=True,
            weights="c0ffee", from_step=19, step=57, heard=126.5, epochs=3,
        ),
        'cc8f371d {"kind":"end","trial":"0a1b","attempt":1,"end":"finished","detail":"","seconds":20.0,'
        '"time":127.0,"final":true,"weights":"c0ffee","from_step":19,"step":57,"heard":126.5,"epochs":3}',
    ),
    (
        BreakerTripped(time=130.0, arm="vit_p", detail="5 trials of vit_p"),
        '58344e1c {"kind":"breaker","time":130.0,"arm":"vit_p","detail":"5 trials of vit_p"}',
    ),
    (RetryWanted(trial="0a1b", time=140.0), '59a4a219 {"kind":"retry","trial":"0a1b","time":140.0}'),
    (SessionClosed(time=150.0), '347e30ad {"kind":"close","time":150.0}'),
    (
        UntilSettled(made=104.0),
        '9fb862e5 {"kind":"until","made":104.0}',
    ),
    (
        LookTaken(
            made=148.0, points=32, last=64, goes_on=False, detail="c is better than p", trials_saved=64,
            hours_saved=3.25, unit="GPU-hours",
        ),
        '1651c32b {"kind":"look","made":148.0,"points":32,"last":64,"goes_on":false,'
        '"detail":"c is better than p","trials_saved":64,"hours_saved":3.25,"unit":"GPU-hours"}',
    ),
    (
        Notice(detail="cannot write to runs/x: full; waiting"),
        '4dfeb53a {"kind":"notice","detail":"cannot write to runs/x: full; waiting"}',
    ),
]  # fmt: skip

#: Lines of the same rows from before their columns had the names of today.
OLD_ROWS = [
    (
        ROW,
        'cb5d1a84 {"kind":"epoch","trial":"0a1b","attempt":1,"row":{"epoch":2,"step":38,"lr":0.001,'
        '"train_loss":1.5,"val_loss":1.25,"val_top1_error_pct":12.5,"val_raw_top1_error_pct":13.5,'
        '"train_seconds":0.5,"val_seconds":0.1,"test_top1_error_pct":null,"peak_memory_gib":null,'
        '"shift_top1_error_pct":null}}',
    ),
    (
        LAST,
        '0416e19d {"kind":"epoch","trial":"0a1b","attempt":1,"row":{"epoch":3,"step":57,"lr":1e-05,'
        '"train_loss":1.0,"val_loss":1.0,"val_top1_error_pct":10.5,"val_raw_top1_error_pct":11.5,'
        '"train_seconds":0.5,"val_seconds":0.1,"test_top1_error_pct":11.0,"peak_memory_gib":3.25,'
        '"shift_top1_error_pct":{"clean":10.0,"fog":30.0}}}',
    ),
]

#: A run as the first version wrote it, without signs of life, checks, phases, nodes and steps.
FIRST_VERSION: list[dict[str, Any]] = [
    {"kind": "session", "time": 100.0, "lanes": [2]},
    {"kind": "attempt", "trial": "t", "attempt": 1, "lane": "x", "time": 110.0},
    {
        "kind": "epoch",
        "trial": "t",
        "attempt": 1,
        "row": {
            "epoch": 1, "step": 20, "lr": 0.1, "train_loss": 1.0, "val_loss": 1.0, "val_top1_error_pct": 50.0,
            "val_raw_top1_error_pct": 51.0, "train_seconds": 1.0, "val_seconds": 0.1,
            "test_top1_error_pct": 52.0,
        },
    },
    {
        "kind": "end", "trial": "t", "attempt": 1, "end": "finished", "detail": "", "seconds": 30.0,
        "time": 140.0, "final": True,
    },
]  # fmt: skip


def test_no_kind_is_left_out_here():
    assert {type(event) for event, _ in LINES} | {Unknown} == set(typing.get_args(Event))


@pytest.mark.parametrize(("event", "line"), LINES, ids=lambda value: getattr(value, "kind", ""))
def test_every_kind_is_written_byte_for_byte_as_ever_and_read_back(event, line):
    assert encode(event) == line + "\n"
    assert decode(f"{line}\n".encode()) == event
    # Between the processes of a run events travel as they are.
    assert pickle.loads(pickle.dumps(event)) == event


@pytest.mark.parametrize(("row", "line"), OLD_ROWS, ids=["an epoch", "the last one"])
def test_rows_of_old_journals_are_read_under_the_names_of_today(row, line):
    assert decode(f"{line}\n".encode()) == EpochDone(trial="0a1b", attempt=1, row=row)


def test_old_errors_are_those_of_corruptions_and_of_shifted_sets():
    errors = dict.fromkeys(KINDS, 5.0) | {"imagenet_v2": 7.0, "clean": 3.0}
    row = dataclasses.asdict(ROW) | {"val_top1_error_pct": 1.0, "shift_top1_error_pct": errors}
    expected = {f"corruption/{kind}": 5.0 for kind in KINDS} | {"shifted/imagenet_v2": 7.0, "clean": 3.0}
    assert len(KINDS) == 15
    assert Epoch.from_row({key: row[key] for key in row if key != "extra"}).extra == expected


@pytest.mark.parametrize(("event", "line"), LINES, ids=lambda value: getattr(value, "kind", ""))
def test_when_and_of_which_trial_is_told_of_every_kind(event, line):
    tree = json.loads(line[9:])
    assert time_of(event) == tree.get("time")
    assert trial_of(event) == tree.get("trial")


def test_a_kind_of_a_later_version_is_carried_and_passed_over():
    tree = {"kind": "moon", "trial": "t", "time": 130.0, "phase": "full"}
    moon = from_json(tree)
    assert moon == Unknown(tree)
    assert to_json(moon) == tree
    assert (moon.kind, time_of(moon), trial_of(moon)) == ("moon", 130.0, "t")
    assert fold([moon]) == {}
    # Whatever it is, a run that says something lives.
    phase = PhaseBegan(time=100.0, lanes=1, devices=1, device="core")
    assert ledger([SessionBegan(time=100.0, began=100.0), phase, moon]).total == 30.0


@pytest.mark.parametrize("kind", [["epoch"], None, 3, "Unknown"])
def test_a_kind_that_is_no_word_of_ours_is_unknown(kind):
    assert from_json({"kind": kind}) == Unknown({"kind": kind})


@pytest.mark.parametrize(("event", "line"), LINES, ids=lambda value: getattr(value, "kind", ""))
def test_keys_of_a_later_version_are_passed_over(event, line):
    tree = json.loads(line[9:]) | {"from_the_future": 1}
    if "row" in tree:
        tree["row"]["from_the_future"] = 1
    if "use" in tree:
        tree["use"]["from_the_future"] = 1
    assert from_json(tree) == event


def test_what_the_first_version_wrote_is_read_with_the_defaults_of_what_it_lacks():
    session, attempt, epoch, end = events = [from_json(tree) for tree in FIRST_VERSION]
    assert session == SessionBegan(time=100.0, began=100.0, lanes=(2,))
    assert from_json({"kind": "session", "time": 100.0}).lanes == ()
    assert attempt.node == ""
    assert (epoch.row.peak_memory_gib, epoch.row.extra) == (None, None)
    assert (end.weights, end.from_step, end.step, end.heard, end.epochs) == ("", -1, -1, 0.0, 0)
    record = fold(events)["t"]
    assert (record.outcome, record.busy_seconds, record.rows[1].test_error_pct) == (
        "finished",
        30.0,
        52.0,
    )
    [told] = attempts_of("t", events)
    assert (told.end, told.from_step, told.step, told.epochs) == ("finished", -1, 20, 1)


@pytest.mark.parametrize(
    "tree",
    [
        {"kind": "session"},
        {"kind": "attempt", "trial": "t"},
        {"kind": "epoch", "trial": "t"},
        {"kind": "epoch", "trial": "t", "attempt": 1, "row": {"epoch": 1}},
        {"kind": "epoch", "trial": "t", "attempt": 1, "row": 7},
        {"kind": "device", "trial": "t", "attempt": 1, "use": {"dtype": "bf16"}},
        {"kind": "end", "trial": "t", "final": True},
        {"kind": "pulse", "time": 1.0, "in_flight": {"t": [1]}},
    ],
)
def test_what_makes_no_sense_is_an_error_and_not_a_guess(tree):
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(tree)


def test_events_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SessionClosed(time=1.0).time = 2.0
