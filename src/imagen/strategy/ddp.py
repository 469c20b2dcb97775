"""The whole network in every process, the gradients averaged (Li et al. 2020, arXiv 2006.15704)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from imagen.ranges import Count


class DDP(DDPStrategy):
    """Lightning's, with what our networks allow: every parameter is used in every step, and no buffer changes.

    ``gradient_as_bucket_view`` keeps gradients in the buckets of ``bucket_cap_mb`` MiB in which they travel;
    ``static_graph`` lets torch find their order once; ``bf16_gradients`` sends them in half the bytes, and rounds them.
    A rank that waits longer than ``timeout_minutes`` for the others ends with an error.
    """

    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool,
        static_graph: bool,
        bucket_cap_mb: Count,
        bf16_gradients: bool,
        timeout_minutes: Count,
    ) -> None:
        super().__init__(
            ddp_comm_hook=bf16_compress_hook if bf16_gradients else None,
            timeout=timedelta(minutes=timeout_minutes),
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
            bucket_cap_mb=bucket_cap_mb,
            broadcast_buffers=False,  # of which newer versions of torch warn: its successor is not in the older ones
        )
        self._passed_once = False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """While micro-batches accumulate, but in the very first pass, in which a static graph is found."""
        with super().block_backward_sync() if self._passed_once else nullcontext():
            yield
        self._passed_once = True
