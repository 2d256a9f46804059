"""Initial weights from the final weights of another run, adapted to other numbers of classes and patches.

Shape suffixes: T tokens (patches and the class token), D width.
"""

import math
from collections.abc import Collection, Mapping
from typing import BinaryIO, Literal

import torch
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from torch import Tensor, nn

from trainables.base import Invalid
from trainables.models.vision_transformer import VisionTransformer, before_projection

Parts = Literal["all", "stem"]


def final_weights(checkpoint: BinaryIO) -> dict[str, Tensor]:
    """Reads the weights a run was judged by from a file of `State.save`: the average if there is one.

    Raises:
      Invalid: the file is none of `State.save`.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights: dict[str, Tensor] = content["model"] if content["ema"] is None else content["ema"]
    # torch raises any exception on bytes that are no checkpoint.
    except Exception as error:
        raise Invalid("the file to start from holds no weights of a run, as --save writes them") from error
    return weights


def take_over(model: nn.Module, weights: Mapping[str, Tensor], parts: Parts, head: Collection[str]) -> None:
    """Puts weights of another run into a freshly built model, in place.

    If the number of classes differs, the classifier keeps its own initial weights. If the number of patches
    differs, position embeddings are interpolated except for the class token's (bicubic, by timm, as in
    Dosovitskiy et al. 2021, section 3.2, https://arxiv.org/abs/2010.11929). With `stem`, everything but the
    stem keeps its own initial weights; so does the stem's projection to the width if the widths differ.

    Args:
      model: freshly built.
      weights: by name.
      parts: what of them is wanted.
      head: the tensors of the classifier, as the model's family names them (`head_names`).

    Raises:
      Invalid: the models differ in other ways; the message names the first tensors that differ.
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
        # Only the width may differ, because other convolutions make a different stem.
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
