"""What is put on record of the device of a run."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from tests.support.sweeps import NANO, TINY, plan_of, tiny_base
from trainables.base import DeviceUse
from trainables.config import Model, TrainConfig
from trainables.context import Context
from trainables.training import device, loop
from trainables.training.device import device_use, lay_out

GPU, HALF = torch.device("cuda"), torch.bfloat16


def config(**changes: object) -> TrainConfig:
    return plan_of().trials[0].config.model_copy(update=changes)


def test_on_a_cpu_it_is_the_processor_and_no_word_of_gpus(monkeypatch):
    # A GPU that is seen is not the one that computes.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    cpu = torch.device("cpu")
    assert named is not None
    assert device_use(config(precision="auto"), cpu) == DeviceUse(name=named[1], dtype="fp32")
    assert device_use(config(precision="bf16"), cpu).dtype == "bf16"
    torch.use_deterministic_algorithms(True)
    try:
        assert device_use(config(), cpu).deterministic
    finally:
        torch.use_deterministic_algorithms(False)


def test_on_a_gpu_in_half_precision_convolutions_have_channels_inside():
    def turned(words, device="cuda", dtype=torch.bfloat16):
        model = TypeAdapter(Model).validate_python(words)
        network = model.network(10)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        lay_out(network, model, torch.device(device), dtype)
        after = network.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        return {
            name.split(".")[0]
            for name, tensor in after.items()
            if tensor.ndim == 4
            and min(tensor.shape[1:]) > 1
            and tensor.is_contiguous(memory_format=torch.channels_last)
        }

    conv = NANO | {"stem": "conv"}
    assert turned(conv) == {"stem"}
    assert turned(NANO) == set()
    assert turned({"family": "resnet", "layers": 18, "image_size": 32}) >= {"conv1", "layer1", "layer4"}
    # Grouped convolutions were found to be three times as slow.
    assert turned({"family": "regnety", "size": "nano"}) == set()
    assert turned(conv, device="cpu") == turned(conv, dtype=None) == set()


def test_channels_inside_give_the_same_steps(monkeypatch):
    def trained(turn):
        trials = plan_of(base=tiny_base(model=TINY, precision="bf16")).trials
        run_config = next(trial.config for trial in trials if trial.arm == "c")
        if turn:
            monkeypatch.setattr(loop, "lay_out", lambda *given: lay_out(*given[:2], GPU, HALF))
        images = run_config.data.open()["train"]
        run = loop.TrainingRun(run_config, Context(), run_config.data.info(), images)
        stem = run.state.model.stem[0].weight
        assert stem.is_contiguous(memory_format=torch.channels_last) == turn
        for step, batch in enumerate(
            itertools.islice(run.pipeline.train_batches(images, 0, run_config.batch_size, 0), 5)
        ):
            run.train_step(batch, 0.01, step, len(batch[0]))
        return torch.cat([p.detach().flatten() for p in run.state.model.parameters()])

    plain, inside = trained(False), trained(True)
    assert torch.linalg.norm(plain - inside) <= 0.02 * torch.linalg.norm(plain)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: f"card {at.index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "driver_version", lambda: "580.65.06")
    return torch.device("cuda", 1)


def test_of_a_gpu_it_is_name_driver_cuda_and_the_precision_in_effect(gpu, monkeypatch):
    # torch's own defaults: TF32 in convolutions alone.
    assert device_use(config(precision="auto"), gpu) == DeviceUse(
        name="card 1", dtype="bf16", driver="580.65.06", cuda="13.0", tf32="conv"
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert device_use(config(precision="auto"), gpu).dtype == "fp16"
    assert device_use(config(precision="fp32"), gpu).dtype == "fp32"


def test_tf32_is_told_as_it_was_set_by_the_old_names_too(gpu):
    assert device_use(config(), gpu).tf32 == "conv"
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert device_use(config(), gpu).tf32 == "matmul"
        torch.backends.cudnn.allow_tf32 = True
        assert device_use(config(), gpu).tf32 == "matmul conv"
    finally:
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False
