"""Networks of the user's own file."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from trainables.config import TrainConfig
from trainables.context import Context
from trainables.errors import UserError
from trainables.identity import identity
from trainables.io import code
from trainables.io.code import trusting_code
from trainables.models import python_model
from trainables.models.base import Cost
from trainables.models.python_model import PythonConfig
from trainables.optim import AdamW, MuonAdamW
from trainables.training.loop import train

SOURCE = """
import pathlib

import torch
from torch import nn

pathlib.Path(__file__).with_name("has_run").touch()

LARGEST = 100
SCALE = torch.tensor([2.0])
torch.rand(3)


def linear(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))


def conv(num_classes, width=4, drop_path=0.0):
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(width, num_classes))
    net.drop_path = drop_path
    return net


class Scaled(nn.Module):
    # Its parts are made in another order than they run.
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(4, num_classes)
        self.mid = nn.Linear(4, 4)
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.head(self.mid(self.stem(images).mean((2, 3)) * SCALE.to(images.device)))


def few(num_classes):
    if num_classes > 5:
        raise RuntimeError("too many")
    return conv(num_classes)


def deaf(num_classes):
    return conv(1000)


def a_list(num_classes):
    return [num_classes]


def broken(num_classes):
    return nn.Linear(num_classes, 0 / 0)
"""


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    """Makes the process one that has run no code yet."""
    monkeypatch.setattr(code, "_trusted", {})
    monkeypatch.setattr(python_model, "_costs", {})
    code._module.cache_clear()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def trusted(file: Path, function: str = "conv", **settings: Any) -> PythonConfig:
    with trusting_code():
        return PythonConfig(**{"build": f"{file}:{function}", "image_size": 16} | settings)


def fault_of(file: Path | str, function: str = "conv", **settings: Any) -> str:
    with pytest.raises(ValidationError) as caught, trusting_code():
        PythonConfig(**{"build": f"{file}:{function}", "image_size": 16} | settings)
    [error] = caught.value.errors()
    return error["msg"].removeprefix("Value error, ").replace(str(file), "FILE")


def test_the_function_gets_classes_size_and_arguments_and_its_network_is_counted(file):
    # 3 x 16 x 16 inputs for each of 7 classes, and 7 biases.
    assert trusted(file, "linear").cost(7) == Cost(5383, 5376, 7)
    network = trusted(file, arguments={"width": 6}, drop_path=0.25).network(5)
    assert (network[0].out_channels, network[3].out_features, network.drop_path) == (6, 5, 0.25)


def test_its_head_and_what_sees_the_image_are_told_apart(file):
    config = trusted(file)
    network = config.network(5)
    assert config.head_names(network) == {"3.weight", "3.bias"}
    groups = AdamW(lr=1, weight_decay=0.1).build(network, 64, config.outer_names(network)).param_groups
    assert {len(group["params"]) for group in groups} == {2}


def test_muon_leaves_the_layer_that_runs_first_and_the_head_to_adamw(file):
    config = trusted(file, "Scaled")
    network = config.network(5)
    assert config.outer_names(network) == {"head.weight", "head.bias", "stem.weight", "stem.bias"}
    groups = MuonAdamW(lr=1, weight_decay=0).build(network, 64, config.outer_names(network)).param_groups
    [inner] = [p for group in groups if group.get("use_muon") for p in group["params"]]
    assert inner is network.mid.weight


def test_constants_of_the_file_have_values_although_it_is_counted_on_the_meta_device(file):
    network = trusted(file, "Scaled").network(5)
    assert network(torch.zeros(1, 3, 16, 16)).isfinite().all()


def test_weights_do_not_depend_on_whether_the_file_has_run_before(file):
    config = trusted(file)

    def weights() -> torch.Tensor:
        torch.manual_seed(4)
        return config.network(3)[0].weight

    first = weights()
    code._module.cache_clear()
    assert torch.equal(weights(), first)


def test_a_network_that_fails_for_the_classes_of_the_data_alone_is_the_users_error(file):
    with pytest.raises(UserError, match=r"cannot be built: RuntimeError: too many \(line \d+\)"):
        trusted(file, "few").cost(10)


@pytest.mark.parametrize(
    "line", ["import beside", "from beside import x", "from . import beside", "import os, package"]
)
def test_a_file_beside_it_is_refused_each_time_and_anywhere(file, monkeypatch, line):
    (file.parent / "beside.py").write_text("x = 1\n")
    (file.parent / "package").mkdir()
    (file.parent / "package" / "__init__.py").touch()
    # Even where Python would find it.
    monkeypatch.syspath_prepend(str(file.parent))
    for text in (f"{line}\n{SOURCE}", f"{SOURCE}\ndef later():\n    {line}\n"):
        file.write_text(text)
        for _ in range(2):
            assert "beside it, whose changes nobody would notice" in fault_of(file)


def test_a_file_beside_it_that_is_imported_by_its_name_is_refused_each_time(file, monkeypatch):
    (file.parent / "beside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(file.parent))
    file.write_text(f"import importlib\nimportlib.import_module('beside')\n{SOURCE}")
    for _ in range(2):
        assert "imports beside.py beside it" in fault_of(file)


def test_functions_of_one_file_are_of_one_module_in_which_pickle_finds_its_classes(file):
    network = trusted(file, "Scaled").network(2)
    trusted(file, "conv").network(2)
    assert type(pickle.loads(pickle.dumps(network))) is type(network)


def test_it_trains_like_any_other(file, run_tree):
    tree = run_tree() | {"model": {"family": "python", "build": f"{file}:linear"}}
    tree["model"]["image_size"] = 16
    with trusting_code():
        config = TrainConfig.model_validate(tree)
    *_, (row, _) = train(config, Context())
    assert row.val_error_pct < 50


@pytest.mark.parametrize(
    ("function", "settings", "fault"),
    [
        ("missing", {}, "cannot be built: FILE: has no function 'missing'"),
        ("LARGEST", {}, "cannot be built: FILE: LARGEST is no function, but 100"),
        ("a_list", {}, "cannot be built: a_list returned [2], and not a torch.nn.Module"),
        ("broken", {}, "cannot be built: ZeroDivisionError: division by zero (line 52)"),
        ("deaf", {}, "gives [2, 1000] for 2 images and 2 classes, not [2, 2]"),
        ("linear", {"drop_path": 0.1}, "linear has no parameter drop_path: leave `drop_path` out"),
        ("conv", {"arguments": {"num_classes": 3}}, "may not hold num_classes: the data decide it"),
        ("conv", {"arguments": {"widht": 3}}, "got an unexpected keyword argument 'widht'"),
        ("no function", {}, "must name a Python file and a function in it, as `nets.py:make`"),
    ],
)
def test_a_fault_is_one_line(file, function, settings, fault):
    found = fault_of(file, function, **settings)
    assert fault in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import torch\ndef conv(:", "FILE: SyntaxError: invalid syntax (line 2)"),
        ("\n\nimport no_such_module", "FILE: ModuleNotFoundError: No module named 'no_such_module' (line 3)"),
        ("raise SystemExit(3)", "FILE: SystemExit: 3 (line 1)"),
        ("import sys; sys.path.insert(0, 'PLACE'); import beside", "FILE: imports beside.py beside it"),
    ],
)
def test_a_file_that_does_not_run_is_a_fault(tmp_path, monkeypatch, source, fault):
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").touch()
    file = tmp_path / "nets.py"
    file.write_text(source.replace("PLACE", str(tmp_path)))
    assert fault_of(file).startswith(f"cannot be built: {fault}")
    sys.modules.pop("beside", None)


def test_a_module_name_is_a_file_and_a_file_that_is_not_there_is_a_fault(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert fault_of("nets", "nothing").endswith("FILE.py: has no function 'nothing'")
    assert fault_of("net.py") == f"{file.parent}/FILE: there is no such file"
    assert fault_of("nets.py", "").startswith("must name a Python file and a function")


def test_nothing_of_the_file_runs_in_a_process_that_only_reads(file):
    config = PythonConfig(build=f"{file}:conv", image_size=16)
    with pytest.raises(ValueError, match="is not run, because only results are read"):
        config.network(2)
    with pytest.raises(ValueError, match="the record does not hold the cost"):
        config.cost(2)
    assert not (file.parent / "has_run").exists()
    trusted(file)
    assert (file.parent / "has_run").exists()


def test_a_file_that_changes_after_it_was_read_is_not_run(file):
    config = trusted(file)
    code._module.cache_clear()
    file.write_text(SOURCE + "# changed")
    with pytest.raises(ValueError, match="has changed or is gone; it held"):
        config.network(2)
    # The changed file is another network, which nobody has trusted.
    assert not PythonConfig(build=f"{file}:conv").build.is_trusted


def test_a_run_is_known_by_what_the_file_holds_and_by_the_function(file, run_tree, tmp_path):
    def id_of(file: Path, function: str = "conv") -> str:
        tree = run_tree() | {"model": {"family": "python", "build": f"{file}:{function}"}}
        return identity(TrainConfig.model_validate(tree), "data")

    elsewhere = tmp_path / "other" / "networks.py"
    elsewhere.parent.mkdir()
    shutil.copy(file, elsewhere)
    assert id_of(file) == id_of(elsewhere) != id_of(file, "linear")
    elsewhere.write_text(SOURCE + "\n")
    assert id_of(file) != id_of(elsewhere)


def test_equal_seeds_give_equal_weights(file):
    def weights() -> torch.Tensor:
        torch.manual_seed(4)
        return trusted(file).network(3)[0].weight

    assert torch.equal(weights(), weights())
