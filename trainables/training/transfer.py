"""A run that starts from another one's final weights: what fits is taken over, what cannot fit is made to.

Shape suffixes: T tokens (patches and the class token), D width.
"""

import math
from collections.abc import Collection, Mapping
from typing import BinaryIO, Literal

import torch
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from torch import Tensor, nn

from trainables.base import Invalid
from trainables.models.stems import before_projection
from trainables.models.vit import VisionTransformer

Parts = Literal["all", "stem"]


def final_weights(checkpoint: BinaryIO) -> dict[str, Tensor]:
    """The weights a run was judged by, out of what `State.save` wrote: their average where there is one."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content["model"] if content["ema"] is None else content["ema"]
    return weights


def take_over(model: nn.Module, weights: Mapping[str, Tensor], parts: Parts, head: Collection[str]) -> None:
    """Puts weights of another run into a freshly built model, in place.

    The classifier keeps its own initial weights where the number of classes differs. Position embeddings
    are interpolated where the number of patches does (bicubic, as Dosovitskiy et al. 2021, section 3.2,
    https://arxiv.org/abs/2010.11929, by timm); the class token's stays. With `stem`, everything but the
    stem keeps its own initial weights, and so does the stem's projection to the width where this differs.

    Args:
      model: freshly built.
      weights: by name.
      parts: what of them is wanted.
      head: the tensors of the classifier, as the model's family names them (`head_names`).

    Raises:
      Invalid: the models differ in more than that; the message names the first tensors that do.
    """
    own = model.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if parts == "all" or name.startswith("stem.")}
    if not wanted:
        raise Invalid("start.parts is stem, and this model has no part of that name")
    fresh = {
        name
        for name in wanted
        if name in head and name in weights and weights[name].shape != wanted[name].shape
    }
    if parts == "stem" and isinstance(model, VisionTransformer):
        kept = {f"stem.{name}" for name in before_projection(model.stem).state_dict()}
        # Another width, and nothing else: a stem of other convolutions is another stem.
        fresh = {
            name
            for name in wanted.keys() - kept
            if name in weights and weights[name].shape[1:] == wanted[name].shape[1:]
        }
        fresh -= {name for name in fresh if weights[name].shape == wanted[name].shape}
    taken: dict[str, Tensor] = {}
    misfits = []
    for name in sorted(wanted.keys() - fresh):
        tensor = weights.get(name)
        if tensor is not None and name == "position":
            tensor = _resampled(tensor, wanted[name].shape[1])
        if tensor is None or tensor.shape != wanted[name].shape:
            found = "nothing" if tensor is None else list(tensor.shape)
            misfits.append(f"{name} wants {list(wanted[name].shape)}, finds {found}")
        else:
            taken[name] = tensor
    if parts == "all":
        misfits += [f"{name} has no place" for name in sorted(weights.keys() - own.keys())]
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise Invalid(f"the weights to start from are of another model: {'; '.join(misfits[:3])}{more}")
    model.load_state_dict(own | taken)


def _resampled(position_1TD: Tensor, num_tokens: int) -> Tensor:
    if position_1TD.shape[1] == num_tokens:
        return position_1TD
    side = math.isqrt(num_tokens - 1)
    resampled: Tensor = resample_abs_pos_embed(position_1TD, [side, side], num_prefix_tokens=1)
    return resampled
