"""Similarity of a network's attention maps from block to block. It grows where attention collapses.

For blocks p and q, a head and a token t, the similarity is the cosine of the columns A_p[:, t] and A_q[:, t]
of the two maps: how much the token contributes to each output token. A column of zeros has similarity 0.

Source: Zhou et al. 2021, DeepViT, https://arxiv.org/abs/2103.11886, section 3.

Shape suffixes: B images, L blocks, K blocks after the first, H heads, T tokens, N entries of a head's maps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.models.block import Attention

#: Before or after a map transform such as re-attention.
Maps = Literal["softmax", "transformed"]
#: All tokens, or all but the class token.
Tokens = Literal["all", "patches"]

#: Bytes of the maps of all blocks that are held at a time. A few copies of them are made.
MAPS_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Similarity:
    """The similarity of a network's maps, as means over images and tokens.

    Attributes:
      maps, tokens: which maps, and which of their tokens.
      num_tokens: length of a column.
      matrix_HLL: mean cosine, by head and pair of blocks.
      share_HK: share of (image, token) pairs that are more similar to the block before than the threshold.
      entropy_HL: mean entropy of a row over that of a uniform row. None for transformed maps, whose rows need
        not be distributions.
    """

    maps: Maps
    tokens: Tokens
    num_tokens: int
    matrix_HLL: NDArray[np.float64]
    share_HK: NDArray[np.float64]
    entropy_HL: NDArray[np.float64] | None


def attention_similarity(
    network: nn.Module,
    batches: Iterable[Tensor],
    threshold: float,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Similarity]:
    """Returns the similarity of a network's maps, of all tokens and of patches alone.

    Transformed maps follow those of softmax if any block has a transform. Images pass a few at a time, so
    that memory does not grow with their number.

    Args:
      network: its blocks have `Attention`, and as many heads and tokens each. The first token is the class
        token. It is put into evaluation mode.
      batches: images, at least one in all.
      threshold: see `Similarity.share_HK`.
      tell: is given the number of images that are done.

    Raises:
      ValueError: the network has no such attention, or there are no images.
    """
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    if not attentions:
        raise ValueError("the network has no attention whose maps can be observed")
    kinds: tuple[Maps, ...] = ("softmax",)
    if any(attention.maps is not None for attention in attentions):
        kinds = ("softmax", "transformed")
    which: tuple[Tokens, ...] = ("all", "patches")
    sums = {(maps, tokens): _Sums(threshold) for maps in kinds for tokens in which}
    seen: list[tuple[Tensor, Tensor]] = []
    before = [attention.observer for attention in attentions]
    network.eval()
    try:
        for attention in attentions:
            attention.observer = lambda *maps: seen.append(maps)
        done, size = 0, 1
        for images_BCHW in batches:
            while len(images_BCHW):
                part_BCHW, images_BCHW = images_BCHW[:size], images_BCHW[size:]
                seen.clear()
                with torch.inference_mode():
                    network(part_BCHW)
                    for maps, of_blocks in zip(kinds, zip(*seen, strict=True), strict=False):
                        maps_LBHTT = torch.stack(of_blocks).float()
                        sums[maps, "all"].add(maps_LBHTT, maps == "softmax")
                        sums[maps, "patches"].add(maps_LBHTT[..., 1:, 1:], maps == "softmax")
                # Known once the first image has passed.
                size = max(1, MAPS_BYTES // maps_LBHTT[:, :1].nbytes)
                done += len(part_BCHW)
                tell(done)
    finally:
        for attention, observer in zip(attentions, before, strict=True):
            attention.observer = observer
    if not done:
        raise ValueError("there are no images")
    return [one.similarity(maps, tokens) for (maps, tokens), one in sums.items()]


class _Sums:
    """Sums over images and tokens, in double precision."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._num_images = self._num_tokens = 0
        self._cosines_HLL = self._above_HK = self._entropies_HL = torch.zeros(())

    def add(self, maps_LBHTT: Tensor, has_entropy: bool) -> None:
        """Adds the maps of some images; `has_entropy` if their rows are distributions or parts of one."""
        self._num_images += maps_LBHTT.shape[1]
        self._num_tokens = maps_LBHTT.shape[-1]
        tiny = torch.finfo(maps_LBHTT.dtype).tiny
        # By its largest entry first, because the squares of a small column would be 0.
        columns_LBHTT = maps_LBHTT / maps_LBHTT.abs().amax(-2, keepdim=True).clamp_min(tiny)
        columns_LBHTT = nn.functional.normalize(columns_LBHTT, dim=-2)
        entries_HLN = columns_LBHTT.permute(2, 0, 1, 3, 4).flatten(2)
        self._cosines_HLL = self._cosines_HLL + _double(entries_HLN @ entries_HLN.mT)
        cosines_KBHT = (columns_LBHTT[1:] * columns_LBHTT[:-1]).sum(-2)
        self._above_HK = self._above_HK + _double((cosines_KBHT > self._threshold).sum((1, 3)).mT)
        if has_entropy:
            rows_LBHTT = maps_LBHTT / maps_LBHTT.sum(-1, keepdim=True).clamp_min(tiny)
            self._entropies_HL = self._entropies_HL + _double(
                torch.special.entr(rows_LBHTT).sum((1, 3, 4)).mT
            )

    def similarity(self, maps: Maps, tokens: Tokens) -> Similarity:
        """Returns the means."""
        pairs = self._num_images * self._num_tokens
        entropy_HL = None
        if maps == "softmax":
            # A single token can only attend to itself, which is uniform.
            most = math.log(self._num_tokens)
            means_HL = (self._entropies_HL / pairs).numpy()
            entropy_HL = means_HL / most if most else np.ones_like(means_HL)
        return Similarity(
            maps,
            tokens,
            self._num_tokens,
            (self._cosines_HLL / pairs).numpy(),
            (self._above_HK / pairs).numpy(),
            entropy_HL,
        )


def _double(values: Tensor) -> Tensor:
    return values.cpu().double()
