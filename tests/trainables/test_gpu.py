"""Devices: a run computes where it was told to, and errors of GPUs are told apart."""

import pytest
import torch
import yaml

from tests.support.sweeps import plan_of, tiny_base
from trainables import gpu
from trainables.__main__ import main
from trainables.context import this_process
from trainables.gpu import fault_text, has_lost_device, is_out_of_memory
from trainables.profiling.dry_run import Request, answer

CPU = torch.device("cpu")


def test_a_run_on_the_cpu_stays_there_where_a_gpu_is_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # torch itself asks the driver, which is not there, at each step.
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None)
    config = plan_of().trials[0].config
    assert this_process().device == CPU
    reply = answer(Request(config, device="cpu"))
    assert (reply.rule, reply.peak_bytes) == ("", None)


def test_the_command_computes_on_the_cpu_if_told_so_where_a_gpu_is_seen(monkeypatch, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    tree = tiny_base(optim={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, schedule={"epochs": 1})
    file.write_text(yaml.safe_dump(tree | {"divergence": {"margin_pct": 0}}))
    assert main([str(file), "--device", "cpu"]) == 0
    *_, expected = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None)
    assert main([str(file), "--device", "cpu"]) == 0
    *_, found = capsys.readouterr().out.splitlines()
    assert found == expected


def test_a_gpu_that_torch_cannot_use_is_refused_with_driver_and_remedies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "driver_version", lambda: "535.104.05")
    monkeypatch.setattr(gpu.platform, "node", lambda: "node-7")
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    reply = answer(Request(plan_of().trials[0].config, device="cuda"))
    assert reply.setting == "resources"
    assert reply.rule == (
        "node-7 claims a GPU, and torch cannot use it: its NVIDIA driver is 535.104.05; torch 2.14.1+cu130 "
        "is built for CUDA 13.0 and wants driver 580.65.06 or newer. Start the machine from an image with a "
        "newer driver, or install a build of torch for the CUDA version of its driver (such as cu126)"
    )


def test_a_machine_without_driver_and_a_torch_without_cuda_are_named():
    text = fault_text("n", "", "2.14.1+cpu", None)
    assert "it has no NVIDIA driver; torch 2.14.1+cpu is built for CPUs alone. Start" in text


def test_the_driver_is_read_from_both_kinds_of_module(monkeypatch, tmp_path):
    # First lines of /proc/driver/nvidia/version, of the proprietary and of the open module.
    file = tmp_path / "version"
    monkeypatch.setattr(gpu, "_DRIVER", file)
    assert gpu.driver_version() == ""
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    )
    assert gpu.driver_version() == "535.104.05"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n"
    )
    assert gpu.driver_version() == "580.65.06"


def test_the_command_refuses_a_gpu_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "run.yaml"
    optim = "optim: {name: adamw, lr: 1e-3, weight_decay: 0.1}"
    file.write_text(f"model: vit_c_1gf\ndata: digits\nschedule: {{epochs: 1}}\n{optim}\n")
    assert main([str(file), "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("--device cuda: ")


# The texts that CUDA 12 and 13, cuBLAS, cuDNN, NCCL and torch's CPU allocator raise as RuntimeErrors.
@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error in: x.cpp:1, unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_errors_about_memory_are_recognised(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not has_lost_device(RuntimeError(text), CPU)


def test_other_errors_are_not_about_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_device_that_answers_no_more_is_lost(monkeypatch):
    def fails(device):
        raise RuntimeError("CUDA error: unspecified launch failure")

    assert has_lost_device(torch.AcceleratorError("CUDA error: device-side assert triggered"), CPU)
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not has_lost_device(ValueError("a bug"), cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert has_lost_device(ValueError("a bug"), cuda)
    assert not has_lost_device(ValueError("a bug"), CPU)
