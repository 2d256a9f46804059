"""The cost of a network, counted on the meta device."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from trainables.models.base import Cost


def count_cost(network: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Counts the cost of a network on the meta device, with a forward pass of one input of shape (C, H, W).

    Convolutions, matrix products and pooling by the largest write activations, as the authors' code counts.
    """
    was_training = network.training
    # Fused attention would hide its two products. Gradients stay on: without them torch's counter refuses
    # networks that hand their parameters to a layer as its input.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as flops,
        _Activations() as written,
    ):
        network.eval()(torch.empty(1, *input_shape, device="meta"))
    network.train(was_training)
    # torch counts a multiply and an add; the paper counts the pair.
    return Cost(sum(p.numel() for p in network.parameters()), flops.get_total_flops() // 2, written.elements)


class _Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that convolutions, linear layers and poolings write while it is active."""

    _COUNTED = (
        torch.ops.aten.convolution,
        torch.ops.aten.mm,
        torch.ops.aten.addmm,
        torch.ops.aten.bmm,
        torch.ops.aten.baddbmm,
        torch.ops.aten.max_pool2d_with_indices,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._COUNTED:
            output: Tensor = result[0] if isinstance(result, tuple) else result
            self.elements += output.numel()
        return result
