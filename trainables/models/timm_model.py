"""Any architecture of timm by its name, under the interface of the other families."""

import copy
import functools
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainables.io.faults import nearest
from trainables.io.named import FileName
from trainables.models.base import Arguments, CountedFamily

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor, nn

#: Arguments that other settings decide: those that users may not give.
_DECIDED = {
    "num_classes": "the data decide it",
    "in_chans": "images have 3 channels",
    "img_size": "`image_size` decides it",
    "drop_path_rate": "`drop_path` decides it",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        "`pretrained` names a local file",
    ),
}


class TimmConfig(CountedFamily):
    """An architecture of timm, from random weights or from a local file; nothing is ever downloaded.

    Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models. The tag of a
    name (`.d2_in1k`) chooses timm's settings for it, and no weights. Its first layer is the one that timm
    names, and what timm exempts from weight decay is exempt.
    """

    family: Literal["timm"] = "timm"
    name: str = Field(description="As `timm.list_models()` has it, with or without a tag.")
    arguments: Arguments = Field(description="Any others of the constructor, by keyword.")
    pretrained: FileName | None = Field(
        None, description="Local file of weights, .safetensors or .pth; random initial weights if left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_resolution(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(name := data.get("name"), str) and name in _names():
            data = {"image_size": _described(name).input_size[-1]} | data
        return data

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name in _names():
            return name
        architecture, _, tag = name.partition(".")
        known = [other for other in _names() if ("." in other) == bool(tag)]
        of_it = [other for other in known if other.startswith(f"{architecture}.")]
        close = nearest(name, of_it or known) or nearest(architecture, known)
        hint = f"; did you mean `{close}`?" if close else ""
        raise ValueError(f"timm has no architecture {name!r}{hint}")

    @field_validator("arguments")
    @classmethod
    def _leaves_to_others(cls, arguments: Arguments) -> Arguments:
        if faults := [f"{name}: {_DECIDED[name]}" for name in arguments if name in _DECIDED]:
            raise ValueError(f"may not hold {'; '.join(faults)}")
        return arguments

    @model_validator(mode="after")
    def _runs(self) -> Self:
        self.cost(2)
        return self

    def network(self, num_classes: int) -> "nn.Module":
        """The network, its initial weights drawn from torch's global generator, or read.

        Raises:
          ValueError: the weights are of another architecture, or not those that the run was configured with.
        """
        network = self._create(num_classes)
        if self.pretrained is None:
            return network
        if not next(network.parameters()).is_meta:
            return self._with_weights(network, num_classes)
        if self.pretrained.is_unchanged():
            _check_weights(self)
        return network

    def head_names(self, network: "nn.Module") -> frozenset[str]:
        """The tensors of the classifier, which another number of classes makes anew."""
        if self.pretrained is None:
            return super().head_names(network)
        # To read weights is to ask for the head.
        return self.model_copy(update={"pretrained": None}).head_names(network)

    def _create(self, num_classes: int, **others: Any) -> "nn.Module":
        import timm

        arguments = copy.deepcopy(dict(self.arguments)) | others | {"num_classes": num_classes}
        if _described(self.name).fixed_input_size:
            arguments["img_size"] = self.image_size
        try:
            return timm.create_model(self.name, **arguments, drop_path_rate=self.drop_path)
        except TypeError as error:
            if "'drop_path_rate'" not in str(error):
                raise
        if self.drop_path:
            raise ValueError("the architecture has no stochastic depth: leave `drop_path` out")
        return timm.create_model(self.name, **arguments)

    def _with_weights(self, network: "nn.Module", num_classes: int) -> "nn.Module":
        """A network with the weights of the file, but for a classifier of another number of classes."""
        from timm.models import load_state_dict

        assert self.pretrained is not None
        path = self.pretrained.checked_path()
        own, head = network.state_dict(), self.head_names(network)
        try:
            weights: dict[str, Tensor] = load_state_dict(path)
            for name in head:
                if name in weights and weights[name].shape != own[name].shape:
                    weights[name] = own[name]
            # timm turns older formats into its own, and positions into those of another image size.
            given = {"state_dict": weights, "num_classes": num_classes, "label_offset": 0}
            return self._create(num_classes, pretrained=True, pretrained_cfg_overlay=given)
        except Exception as error:
            # The first line of torch's list of misfits is none of them.
            first, *others = str(error).strip().splitlines() or ["no message"]
            misfit = others[0].strip() if others and first.startswith("Error(s) in loading") else first
            raise ValueError(f"{path} does not hold its weights: {type(error).__name__}: {misfit}") from error


def _described(name: str) -> "PretrainedCfg":
    """timm's settings of an architecture, or its defaults."""
    from timm.models import PretrainedCfg, get_pretrained_cfg

    return get_pretrained_cfg(name) or PretrainedCfg()


@functools.cache
def _names() -> dict[str, None]:
    """The architectures without and with their tags, in timm's order."""
    from timm.models import list_models

    return dict.fromkeys([*list_models(include_tags=False), *list_models(include_tags=True)])


@functools.lru_cache(maxsize=32)
def _check_weights(config: TimmConfig) -> None:
    """Reads weights once as training will: before a run and not in the middle of a sweep."""
    import torch

    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        config._with_weights(config._create(2), 2)
