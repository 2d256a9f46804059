"""What is put on record of the device of a run."""

import re
from pathlib import Path

import pytest
import torch

from tests.support.sweeps import plan_of
from trainables.base import DeviceUse
from trainables.config import TrainConfig
from trainables.training import device
from trainables.training.device import device_use


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
