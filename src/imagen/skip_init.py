"""Building a network whose weights are about to be loaded: nothing is drawn for them."""

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class SkipInit(TorchFunctionMode):
    """Inside, the functions of ``torch.nn.init`` leave a tensor as it was allocated.

    Buffers and all else that a constructor computes are as ever. Every parameter must be loaded afterwards.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
