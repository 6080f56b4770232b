"""FrozenLinear: a linear layer for inference, with the weight in the layout that the machine multiplies fastest.

On the CPU that is oneDNN's packed layout (float32 and bfloat16), from a size on where it was measured to win over
`F.linear`. The weight is a copy: it is made anew for each rollout and never trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeGuard

import torch
from torch import nn
from torch.nn import functional

from gruppo.rollout.half import HALF

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST_PACKED: Final = 2**16
"""Elements. Below, the call costs more than the better layout saves (measured: 128x128 loses, 384x384 wins)."""

_PACKABLE = (torch.float32, torch.bfloat16)
_ROWS_HINT: Final = 32


class FrozenLinear:
    """x -> x·Wᵀ + b in `weight.dtype`, whatever the type of x."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None) -> None:
        self._dtype = weight_VD.dtype
        self._bias_V = bias_V
        is_packed = (
            weight_VD.device.type == "cpu"
            and weight_VD.dtype in _PACKABLE
            and weight_VD.numel() >= _SMALLEST_PACKED
            and torch.backends.mkldnn.is_available()
        )
        self._packed: Any = None
        self._weight_VD: Tensor | None = weight_VD
        if is_packed:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_VD, _ROWS_HINT)
            self._weight_VD = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != self._dtype:
            x = x.to(self._dtype)
        if self._weight_VD is not None:
            return functional.linear(x, self._weight_VD, self._bias_V)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias_V, "none", [], "")
        return out


def effective_weight(module: nn.Module, num_in: int) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of any module that is a linear map, adapters and all; the module is not changed.

    A plain layer hands out its own tensors, and so does one of another class that does the same (the policy's head in
    float32). Of anything else (a LoRA layer, say) the weight is what it does to the
    unit vectors: the adapter is merged into the copy and nowhere else.
    """
    if _is_plain(module, num_in):
        return module.weight, module.bias
    base = next(module.parameters())
    bias_V = module(base.new_zeros(1, num_in))[0]
    weight_DV = module(torch.eye(num_in, dtype=base.dtype, device=base.device)) - bias_V
    return weight_DV.t().contiguous(), bias_V if bool(bias_V.any()) else None


def answer_dtype(module: nn.Module, num_in: int, dtype: torch.dtype) -> torch.dtype:
    """The type in which a linear layer answers where matrix products have `dtype`, or that if it is wider.

    Some layers keep to a type of their own (the policy's head in float32), whatever autocast says.
    """
    if type(module) is nn.Linear:
        return dtype
    base = next(module.parameters())
    # Autocast knows half precision only; other types are those of the parameters.
    with torch.autocast(base.device.type, dtype=dtype if dtype in HALF else None, enabled=dtype in HALF):
        answer: Tensor = module(base.new_zeros(1, num_in))
    return torch.promote_types(answer.dtype, dtype)


def _is_plain(module: nn.Module, num_in: int) -> TypeGuard[nn.Linear]:
    """Whether a layer answers with its weight and bias alone. One of another class is asked, with some numbers."""
    if type(module) is nn.Linear:
        return True
    if not isinstance(module, nn.Linear) or type(module.weight) is not nn.Parameter:
        return False
    x = (
        torch.arange(1, num_in + 1, dtype=torch.float32, device=module.weight.device)
        .sin()[None]
        .to(module.weight.dtype)
    )
    return torch.equal(module(x), functional.linear(x, module.weight, module.bias))
