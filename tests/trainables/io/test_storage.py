"""Tests that secrets in addresses are refused before they are stored, and hidden in messages."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import build_sweep
from trainables.__main__ import main
from trainables.base import DataError
from trainables.config import TrainConfig, faults_of
from trainables.data.parquet import Parquet
from trainables.data.shifted import ShiftedSet
from trainables.io.storage import inside, last_name, open_filesystem, redacted, secret_in
from trainables.training.checkpoint import Store

KEEPS = [
    "s3://AKIA123:hunter2@bucket/train.parquet",
    "s3://AKIA123:hun/ter2@bucket/train.parquet",
    "s3://bucket/train.parquet?region=x&secret_key=hunter2",
    "s3://bucket/train.parquet?endpoint_override=http://me:hunter2@minio:9000",
    "abfss://:hunter2@account/container/file",
    "abfss://c@account.dfs.core.windows.net/f?sas_token=hunter2",
    "https://account.blob.core.windows.net/c/f?sv=2021&sig=hunter2",
    "s3://bucket/f?X-Amz-Signature=hunter2",
]
HARMLESS = [
    "/data/train.parquet",
    "runs/a@b:c/x",
    "s3://bucket/train.parquet?region=eu-west-1&endpoint_override=minio.example.org:9000",
    "gs://anonymous@bucket/file",
    "abfss://container@account.dfs.core.windows.net/file",
    "hdfs://namenode:8020/user/me@example.org/file",
]


@pytest.mark.parametrize("uri", KEEPS)
def test_an_address_with_a_secret_is_refused_without_showing_it(uri):
    assert secret_in(uri)
    assert "hunter2" not in redacted(f"cannot open {uri}: no such host")
    with pytest.raises(ValidationError) as caught:
        Parquet(path=uri)
    [fault] = faults_of(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(fault)
    assert "hunter2" not in str(fault)
    with pytest.raises(ValidationError, match="which records and logs would keep"):
        ShiftedSet(name="a", uri=uri)
    with pytest.raises(DataError, match="which records and logs would keep") as refused:
        Store(uri)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("uri", HARMLESS)
def test_an_address_without_a_secret_is_left_as_it_is(uri):
    assert not secret_in(uri)
    assert redacted(uri) == uri
    assert Parquet(path=uri).path == uri


@pytest.mark.parametrize(
    ("place", "below", "name"),
    [
        ("/states/", "/states/small/abc", "states"),
        ("/", "/small/abc", ""),
        ("/a?b#c", "/a?b#c/small/abc", "a?b#c"),
        ("file:///", "file:///small/abc", ""),
        ("s3://bucket", "s3://bucket/small/abc", "bucket"),
        (
            "s3://bucket/my/states/?region=us-east-1&endpoint_override=http://minio:9000/",
            "s3://bucket/my/states/small/abc?region=us-east-1&endpoint_override=http://minio:9000/",
            "states",
        ),
    ],
)
def test_what_is_in_a_place_has_its_path_extended_and_not_its_query(place, below, name):
    assert inside(place, "small", "abc") == below
    assert last_name(place) == name


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("s3://bucket/run#1/states", "has a '#', and what follows it would be dropped: write %23 in a name"),
        ("s3://bucket/a#b?region=eu-west-1", "has a '#', and what follows it would be dropped: write %23"),
        ("file:///states?region=eu-west-1", "has a query after '?', which a file has none of: write %3F"),
        ("s3://?region=eu-west-1", "names no bucket after s3://"),
        ("gs:///states", "names no bucket after gs://"),
        ("s3://bucket/a?region=eu-west-1&colour=red", "Unexpected query parameter in S3 URI: 'colour'"),
        ("ftp://host/a", "Unrecognized filesystem type in URI"),
    ],
)
def test_an_address_that_would_open_another_place_is_refused_with_the_reason(uri, rule):
    with pytest.raises(DataError, match="^" + re.escape(uri) + ": .*" + re.escape(rule)):
        open_filesystem(uri)


@given(st.text(st.characters(exclude_characters="/ ?#@:'\"", exclude_categories=("Z", "C"))))
def test_no_password_is_left_in_what_is_shown(password):
    shown = redacted(f"mysql://me:{password}-s3cr3t@host:3306/db?password={password}-s3cr3t")
    assert "s3cr3t" not in shown.replace(f"={password}-s3cr3t", "=") or "&" in password
    assert "host:3306/db" in shown


def test_a_sweep_with_a_secret_is_refused_whatever_else_is_wrong_with_it(run_tree):
    base = run_tree(data={"name": "parquet", "path": KEEPS[0], "unknown": 1})
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(base)
    assert "hunter2" not in " ".join(map(str, faults_of(caught.value)))
    # An address where something else belongs is shown as what was found.
    with pytest.raises(SweepError) as refused:
        build_sweep(
            {
                "name": "x",
                "base": run_tree(batch_size=KEEPS[0]),
                "arms": {"a": {}},
                "design": {"kind": "sobol", "points": 1},
            },
            "x.yaml",
        )
    assert "s3://***@bucket" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_command_line_shows_no_secret(tmp_path, run_tree, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run_tree(data={"name": "parquet", "path": KEEPS[2]})))
    assert main([str(file)]) == 2
    told = capsys.readouterr()
    assert "secret_key" in told.err
    assert "hunter2" not in told.out + told.err
    file.write_text(json.dumps(run_tree()))
    assert main([str(file), "--checkpoint", KEEPS[0]]) == 2
    assert "hunter2" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
