"""A network of the user's own Python file, under the interface of the other families."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainables.io.code import FunctionName, describe
from trainables.models.base import Arguments, Cost, CountedFamily, names_under

if TYPE_CHECKING:  # settings are read without torch
    from torch import nn

#: Arguments that other settings decide.
_DECIDED = {
    "num_classes": "the data decide it",
    "image_size": "the setting of that name decides it",
    "drop_path": "the setting of that name decides it",
}


class PythonConfig(CountedFamily):
    """A network that a function of a local Python file returns.

    The function is called with `num_classes` and all of `arguments`, and with `image_size` and `drop_path` if
    it has parameters of these names. It returns a `torch.nn.Module` that takes images of shape (B, 3, S, S)
    and gives logits of shape (B, num_classes). The file must stand alone and counts by its content, not by
    where it lies. Only processes that plan or run a sweep run it; reading results does not.
    """

    family: Literal["python"] = "python"
    build: FunctionName = Field(description="A file and a function in it: `nets.py:make`.")
    arguments: Arguments = Field(description="Arguments of the function, by keyword.")

    @field_validator("arguments")
    @classmethod
    def _leaves_to_others(cls, arguments: Arguments) -> Arguments:
        if faults := [f"{name}: {_DECIDED[name]}" for name in arguments if name in _DECIDED]:
            raise ValueError(f"may not hold {'; '.join(faults)}")
        return arguments

    @model_validator(mode="after")
    def _answers(self) -> Self:
        if self.build.is_trusted:
            self.cost(2)
        return self

    def network(self, num_classes: int) -> "nn.Module":
        """The network, its initial weights drawn from torch's global generator.

        Raises:
          ValueError: this process may not run the file, or it raises, or its function returns no network.
        """
        import torch
        from torch import nn

        # The file runs on the first call, which may be inside `torch.device("meta")`: its constants would be
        # empty for as long as the process lives.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            make = self.build.load()
        given: dict[str, Any] = copy.deepcopy(dict(self.arguments)) | {"num_classes": num_classes}
        known = inspect.signature(make).parameters
        given |= {name: getattr(self, name) for name in ("image_size", "drop_path") if name in known}
        if self.drop_path and "drop_path" not in known:
            raise ValueError(f"{self.build.function} has no parameter drop_path: leave `drop_path` out")
        network = make(**given)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.build.function} returned {network!r:.60}, and not a torch.nn.Module")
        return network

    def outer_names(self, network: "nn.Module") -> frozenset[str]:
        """Returns the names of parameters that embed or classify. The layer that sees the image is one."""
        return super().outer_names(network) | names_under(network, [_first_layer(self)])

    def cost(self, num_classes: int) -> Cost:
        """Counts the cost, or returns the recorded one in a process that may not run the file.

        Raises:
          ValueError: the network cannot be built, takes no images of this size, or gives no logits.
        """
        key = (self.model_copy(update={"drop_path": 0.1 if self.drop_path else 0.0}), num_classes)
        if key not in _costs:
            if not self.build.is_trusted:
                raise ValueError(f"{self.build.path}: the record does not hold the cost of this network")
            _costs[key] = super().cost(num_classes)
            _check_answer(self, num_classes)
        return _costs[key]

    def cause(self, error: Exception) -> str:
        """Returns a message for an error that the network raised, with the line of the file."""
        return describe(error, self.build.path)


@functools.lru_cache(maxsize=64)
def _first_layer(config: PythonConfig) -> str:
    """Returns the name of the first module with weights of its own that runs. Empty if there is none."""
    import torch

    ran: list[str] = []
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.no_grad():
        network = config.network(2).eval()
        for name, module in network.named_modules():
            if name and next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        network(torch.empty(1, *config.input_shape))
    return ran[0] if ran else ""


#: Costs by network and number of classes, as counted or read from a record by this process.
_costs: dict[tuple[PythonConfig, int], Cost] = {}


def _check_answer(config: PythonConfig, num_classes: int) -> None:
    """Raises `ValueError` if the network gives anything but logits. Tried on the meta device."""
    import torch
    from torch import Tensor

    with torch.device("meta"):
        answer = config.network(num_classes).eval()(torch.empty(2, *config.input_shape))
    if not isinstance(answer, Tensor) or answer.shape != (2, num_classes):
        found = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ValueError(f"gives {found} for 2 images and {num_classes} classes, not [2, {num_classes}]")


def known_costs(digests: Collection[str]) -> list[dict[str, Any]]:
    """Returns the costs that this process knows of networks of some files, as plain values for a record."""
    return [
        {"model": config.model_dump(mode="json"), "classes": classes, **dataclasses.asdict(cost)}
        for (config, classes), cost in _costs.items()
        if config.build.digest in digests
    ]


def take_costs(entries: Iterable[Mapping[str, Any]]) -> None:
    """Takes costs from a record, so that its results can be read without the files.

    Raises:
      ValueError: an entry is damaged, or contradicts what this process knows.
    """
    for entry in entries:
        values = dict(entry)
        key = (PythonConfig.model_validate(values.pop("model")), int(values.pop("classes")))
        cost = Cost(**values)
        if _costs.setdefault(key, cost) != cost:
            raise ValueError(f"{key[0].build.path}: another cost is recorded than this network has")
