"""The interface of a model family. Its settings are read without torch, which only networks need."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field

from trainables.base import Frozen
from trainables.errors import UserError
from trainables.tasks.classification import Classification

if TYPE_CHECKING:  # settings are read without torch; networks are built with it
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one forward pass of one image, in the paper's convention (its appendix D).

    Attributes:
      params: parameters, including frozen ones.
      flops: multiply-adds of convolutions and matrix products.
      activations: elements that convolutions and matrix products write.
    """

    params: int
    flops: int
    activations: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params, self.flops + other.flops, self.activations + other.activations
        )

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.params / 1e6

    @property
    def flops_g(self) -> float:
        """Multiply-adds in units of 1e9."""
        return self.flops / 1e9

    @property
    def activations_m(self) -> float:
        """Activations in millions."""
        return self.activations / 1e6


class ModelFamily(Frozen):
    """A configuration that builds a network and describes it to the training library.

    A new family is a subclass in a file of its own, with a `family` of one word and fields `image_size` and
    `drop_path`, and its name in the union `config.ModelConfig`.
    """

    #: Names of the tasks that it answers.
    tasks: ClassVar[frozenset[str]] = frozenset({Classification.name})

    #: Modules that classify, by name; left empty, they are found by what follows the number of classes.
    head: ClassVar[tuple[str, ...]] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        raise NotImplementedError

    def network(self, num_classes: int) -> "nn.Module":
        """Builds the network, with initial weights drawn from torch's global generator."""
        raise NotImplementedError

    def cost(self, num_classes: int) -> Cost:
        """Returns the cost of one image."""
        raise NotImplementedError

    def head_names(self, network: "nn.Module") -> frozenset[str]:
        """Returns the names of the classifier's tensors. Another number of classes gives them new weights."""
        if self.head:
            return names_under(network, self.head)
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        others = _shapes(self, 2)
        if others == shapes:
            others = _shapes(self, 3)
        return frozenset(name for name, shape in shapes.items() if others.get(name) != shape)

    def recomputing(self) -> Self | None:
        """Returns the same model with less memory and more work; None if there is none, or this is it."""
        return None

    def channels_inside(self, network: "nn.Module") -> "tuple[nn.Module, ...]":
        """Returns the parts that a GPU computes faster in half precision with channels as the innermost axis.

        These are convolutions without groups; grouped ones may be slower so. Source: timm's tables of
        training speed for both orders, `results/benchmark-train-amp-*.csv` of its repository.
        """
        return ()

    def outer_names(self, network: "nn.Module") -> frozenset[str]:
        """Returns the names of parameters that embed or classify. An optimizer may treat them differently.

        Those that belong to the network itself and to none of its layers are positions and tokens.
        """
        from torch import nn

        own = {name for name, _ in network.named_parameters(recurse=False)}
        embeddings = {name for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
        return self.head_names(network) | own | names_under(network, {*_first_layers(network), *embeddings})


@functools.lru_cache(maxsize=64)
def _shapes(family: ModelFamily, num_classes: int) -> dict[str, "torch.Size"]:
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = family.network(num_classes)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _first_layers(network: "nn.Module") -> tuple[str, ...]:
    """The modules that see the image, where timm describes the network."""
    description: Any = getattr(network, "pretrained_cfg", None) or {}
    found = description.get("first_conv") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def names_under(network: "nn.Module", modules: Iterable[str]) -> frozenset[str]:
    """Returns the names of the tensors of some modules and of what is in them."""
    whole = tuple(modules)
    prefixes = tuple(f"{module}." for module in whole)
    return frozenset(name for name in network.state_dict() if name in whole or name.startswith(prefixes))


class _Arguments(dict[str, Any]):
    """Keyword arguments that a configuration holds: hashable, and equal to those that are written alike."""

    def _text(self) -> str:
        return json.dumps(self, sort_keys=True, allow_nan=False)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self._text())

    def __eq__(self, other: object) -> bool:
        # True and 1.0 equal 1, and a constructor can tell them apart.
        return isinstance(other, dict) and self._text() == _Arguments(other)._text()

    def __ne__(self, other: object) -> bool:
        return not self == other


def _arguments(values: dict[str, Any]) -> _Arguments:
    arguments = _Arguments(values)
    try:
        hash(arguments)
    except (TypeError, ValueError):
        rule = "must be numbers, texts, true, false, null, and lists and mappings of these"
        raise ValueError(rule) from None
    return arguments


#: Keyword arguments of what somebody else wrote, by name.
Arguments = Annotated[dict[str, Any], Field(default_factory=_Arguments), AfterValidator(_arguments)]


class CountedFamily(ModelFamily):
    """A family for square images whose cost is counted on the meta device, where nothing is allocated."""

    image_size: int = Field(224, gt=0, le=8192, description="Side of the square input, pixels.")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth of the last block.")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        return (3, self.image_size, self.image_size)

    def cost(self, num_classes: int) -> Cost:
        """Counts the cost without allocating the network.

        Raises:
          UserError: the network cannot be built, or takes no images of this size; the message says why.
        """
        # How much is dropped changes no count, and is drawn anew at every point of some sweeps.
        return _counted(self.model_copy(update={"drop_path": 0.1 if self.drop_path else 0.0}), num_classes)

    def cause(self, error: Exception) -> str:
        """Returns a message for an error that a network raised."""
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {first}"


@functools.lru_cache(maxsize=256)
def _counted(config: CountedFamily, num_classes: int) -> Cost:
    import torch

    from trainables.models.counting import count_cost

    with _explaining(config, "cannot be built"), torch.device("meta"):
        network = config.network(num_classes)
    with _explaining(config, f"takes no images of {config.image_size} pixels"):
        return count_cost(network, config.input_shape)


@contextlib.contextmanager
def _explaining(config: CountedFamily, rule: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"{rule}: {config.cause(error)}") from error
