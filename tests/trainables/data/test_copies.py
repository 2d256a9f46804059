"""Copies of distant or large data on this machine: made once, within a limit; and epochs over shards."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import parquet_file, png
from trainables.base import DataError
from trainables.config import TrainConfig
from trainables.context import Context
from trainables.data import parquet_table
from trainables.data.copies import held_copy
from trainables.data.parquet import Parquet
from trainables.training.loop import train
from trainables.transforms.imagenet import Paper
from trainables.transforms.imagenet_pipeline import PaperPipeline, _Sample

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VITC_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "copies"


def copies(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def fill(num_bytes: int):
    return lambda folder: (folder / "data").write_bytes(b"x" * num_bytes)


# --- the limit ----------------------------------------------------------------------------------------


def test_the_least_recently_used_copy_that_nobody_holds_goes_first(cache, monkeypatch):
    monkeypatch.setenv("VITC_SWEEP_CACHE_GB", "0.00001")  # 10,000 bytes
    for key in ("a", "b", "c"):
        held_copy(key, 3_000, fill(3_000))[1].close()
    _, hold = held_copy("a", 3_000, fill(0))  # used again, and held
    held_copy("d", 3_000, fill(3_000))[1].close()
    assert copies(cache) == {"a", "c", "d"}
    held_copy("e", 6_000, fill(6_000))[1].close()
    assert copies(cache) == {"a", "e"}
    with pytest.raises(DataError, match=r"limit is 1e-05 GB, and copies of 3e-06 GB are in use: raise VITC"):
        held_copy("f", 8_000, fill(8_000))
    hold.close()
    held_copy("f", 8_000, fill(8_000))[1].close()
    assert copies(cache) == {"f"}


def test_a_set_larger_than_the_limit_is_refused_with_the_remedy(cache, monkeypatch):
    monkeypatch.setenv("VITC_SWEEP_CACHE_GB", "0.00001")
    held_copy("a", 3_000, fill(3_000))[1].close()
    with pytest.raises(DataError) as caught:
        held_copy("b", 20_000, fill(20_000))
    assert str(caught.value) == (
        f"{cache}: a copy of the data takes 2e-05 GB, and the limit is 1e-05 GB: raise "
        "VITC_SWEEP_CACHE_GB, or name a folder on a larger disk by VITC_SWEEP_CACHE"
    )
    assert copies(cache) == {"a"}
    for word in ("many", "-1", "nan"):
        monkeypatch.setenv("VITC_SWEEP_CACHE_GB", word)
        with pytest.raises(DataError, match="VITC_SWEEP_CACHE_GB: must be a number of GB above 0, is"):
            held_copy("b", 1, fill(1))


def test_a_copy_that_fails_leaves_nothing(cache):
    def fail(folder):
        (folder / "data").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left on device"):
        held_copy("a", 1, fail)
    assert not copies(cache)


def test_a_copy_half_made_by_a_killed_process_is_made_anew(cache):
    code = (
        "import os, signal; from trainables.data.copies import held_copy\n"
        "def make(folder):\n"
        "    (folder / 'data').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "held_copy('a', 4, make)"
    )
    for key in ("a", "a", "other"):
        done = subprocess.run([sys.executable, "-c", code.replace("'a'", repr(key))], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
    # What is left of one is deleted as room is made for the next.
    assert copies(cache) == {"other.part"}
    place, _hold = held_copy("a", 5, lambda folder: (folder / "data").write_bytes(b"whole"))
    assert (place / "data").read_bytes() == b"whole"
    assert copies(cache) == {"a"}


# --- shards in a bucket -------------------------------------------------------------------------------


class Bucket:
    """An S3 server on loopback that counts the bytes it sends of each object."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        application = DomainDispatcherApplication(create_backend_app)
        self.sent: Counter[str] = Counter()

        def counted(environ, start_response):
            for chunk in application(environ, start_response):
                if environ["REQUEST_METHOD"] == "GET":
                    self.sent[environ["PATH_INFO"]] += len(chunk)
                yield chunk

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = make_server("127.0.0.1", port, counted, threaded=True)
        self.url = f"http://127.0.0.1:{port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
    bucket = Bucket()
    for name, value in (keys | {"AWS_ENDPOINT_URL": bucket.url, "AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    bucket.client = boto3.client("s3", endpoint_url=bucket.url, region_name="us-east-1")
    bucket.client.create_bucket(Bucket="photos")
    yield bucket
    bucket.server.shutdown()


READ = """
import hashlib, json, sys
from trainables.data import copies, parquet_table
from trainables.data.parquet import Parquet

made, make = [], copies._make
copies._make = lambda *arguments: (made.append(1), make(*arguments))
print("ready", flush=True)
sys.stdin.readline()
config = Parquet(path=sys.argv[1])
splits, info = config.open(), config.info()
pixels = hashlib.sha256()
for split, images in splits.items():
    for row in range(len(images)):
        pixels.update(images.read(row).tobytes())
print(json.dumps([len(made), info.fingerprint, pixels.hexdigest()]))
"""


def test_four_processes_make_one_copy_of_a_bucket_and_read_it_once(bucket, cache, tmp_path):
    rng = np.random.default_rng(0)
    total = 0
    for number in range(4):
        images = [png(rng.integers(0, 256, (512, 1024, 3))) for _ in range(4)]
        name = f"train-0000{number}-of-00004.parquet"
        path = parquet_file(tmp_path / "shards" / name, images, [0, 1, 0, 1], ["cat", "dog"])
        bucket.client.upload_file(str(path), "photos", f"set/{name}")
        total += path.stat().st_size
    assert total > parquet_table._DISTANT_BYTES
    bucket.sent.clear()
    command = [sys.executable, "-c", READ, "s3://photos/set"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(4)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 4
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    answers = [json.loads(reader.communicate()[0]) for reader in readers]
    assert sorted(made for made, *_ in answers) == [0, 0, 0, 1]
    local = Parquet(path=str(tmp_path / "shards"))
    assert {fingerprint for _, fingerprint, _ in answers} == {local.info().fingerprint}
    assert len({pixels for *_, pixels in answers}) == 1
    # Once each image, and of each process the footers, labels and a first row.
    assert total <= sum(bucket.sent.values()) < 2 * total + 4 * 4 * 2**21
    assert len(list(cache.rglob("*.arrow"))) == 4


# --- epochs over shards -------------------------------------------------------------------------------


def marked(count: int) -> list[bytes | None]:
    """Pictures that differ in red, which says their number."""
    return [
        png(np.full((16, 16, 3), [4 * number, 40 * (number % 2), 9], np.uint8)) for number in range(count)
    ]


def single_and_shards(tmp_path: Path) -> tuple[Parquet, Parquet]:
    images, labels = marked(60), [number % 2 for number in range(60)]
    single = parquet_file(tmp_path / "single" / "train.parquet", images, labels, ["a", "b"])
    for number, (start, stop) in enumerate([(0, 13), (13, 14), (14, 45), (45, 60)]):
        name = f"train-0000{number}-of-00004.parquet"
        parquet_file(tmp_path / "shards" / name, images[start:stop], labels[start:stop], ["a", "b"])
    return Parquet(path=str(single.parent)), Parquet(path=str(tmp_path / "shards"))


@pytest.mark.parametrize("recipe", ["light", "paper"])
@pytest.mark.parametrize("is_copied", [False, True])
def test_a_trial_on_shards_ends_with_the_same_weights_as_on_one_file(
    tmp_path, run_tree, monkeypatch, cache, recipe, is_copied
):
    if is_copied:
        monkeypatch.setattr(parquet_table, "IN_MEMORY_BYTES", 0)
    digests, rows = [], []
    for data in single_and_shards(tmp_path):
        config = TrainConfig.model_validate(
            run_tree(batch_size=16, divergence__margin_pct=0, divergence__window=9)
            | {"data": data.model_dump(), "recipe": recipe}
        )
        context = Context(loader_workers=2 if recipe == "paper" else 0)
        ended = [(row, state) for row, state in train(config, context)]
        weights = ended[-1][1].model.state_dict()
        digests.append({name: tensor.numpy().tobytes() for name, tensor in weights.items()})
        rows.append([row.train_loss for row, _ in ended])
    assert digests[0] == digests[1]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


@pytest.mark.parametrize(("workers", "loaders"), [(1, 2), (2, 2), (3, 1)])
def test_each_image_of_shards_is_seen_once_an_epoch_by_all_workers_and_loaders(
    tmp_path, monkeypatch, workers, loaders
):
    single, shards = single_and_shards(tmp_path)
    images, whole = shards.open()["train"], single.open()["train"]

    class AsItIs:
        def __init__(self, *unused):
            pass

        def __call__(self, image, seed):
            return _Sample(np.asarray(image), None, [])

    monkeypatch.setattr("trainables.transforms.imagenet_pipeline.Augment", AsItIs)
    monkeypatch.setattr("trainables.transforms.imagenet_pipeline.normalise", lambda pixels, *unused: pixels)

    def seen(split, epoch):
        found = []
        for rank in range(workers):
            pipeline = PaperPipeline(Paper(), 16, 0, Context(torch.device("cpu"), rank, workers, loaders))
            for pixels, _ in pipeline.train_batches(split, 0, 16, epoch):
                found += (pixels[:, 0, 0, 0] // 4).tolist()
        return found

    for epoch in range(2):
        order = seen(images, epoch)
        assert sorted(order) == sorted(
            int(np.asarray(whole.read(i))[0, 0, 0]) // 4 for i in range(len(whole))
        )
        assert order == seen(whole, epoch)


def test_loader_processes_do_not_read_the_files_again(tmp_path, monkeypatch):
    single, _ = single_and_shards(tmp_path)
    reads = tmp_path / "reads"
    batches = parquet_table._batches

    def counted(*arguments):
        with reads.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return batches(*arguments)

    monkeypatch.setattr(parquet_table, "_batches", counted)
    images = single.open()["train"]
    pipeline = PaperPipeline(Paper(), 16, 0, Context(torch.device("cpu"), 0, 1, 2))
    for epoch in range(2):
        assert sum(len(labels) for _, labels in pipeline.train_batches(images, 0, 16, epoch)) == len(images)
    assert reads.read_text().split() == [str(os.getpid())]
