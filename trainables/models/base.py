"""The cost of a network."""

from dataclasses import dataclass


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
