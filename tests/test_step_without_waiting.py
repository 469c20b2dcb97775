"""A training step asks the device for nothing: the host runs ahead of it from the first operation to the average."""

from typing import Any

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imagen import build
from imagen.cli import compose

SMALL = ["data=synthetic", "data.num_workers=0"]
TOYS = ["experiment=toy", "experiment=toy_sr32"]
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Reads(TorchDispatchMode):
    """Notes each operation that brings a value of a tensor to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def step(experiment: str, device: str) -> Any:
    """The step as training takes it, once it is called: loss, backward, clipping, optimizer, average."""
    cfg = compose("train", [*SMALL, experiment])
    module, data = build.build_module(cfg).to(device), build.build_data(cfg)
    data.setup("fit")
    batch = next(iter(data.train_dataloader())).to(device)
    optimizer = module.configure_optimizers()["optimizer"]

    def call() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = module.loss(module.denoiser, batch, module.address(batch, 0, 0), training=True)
        loss.per_example.mean().backward()
        torch.nn.utils.clip_grad_norm_(module.denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        module.ema.update(module.denoiser.network, 1)

    return call


@pytest.mark.parametrize("experiment", TOYS)
def test_no_value_is_read_on_the_host(experiment: str):
    call = step(experiment, "cpu")
    call()  # what is made once, an optimizer's state say, may wait
    with Reads() as reads:
        call()
    assert reads.seen == []


def test_a_read_is_seen():
    with Reads() as reads:
        torch.ones(1).item()
    assert len(reads.seen) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("experiment", TOYS)
def test_a_gpu_is_never_waited_for(experiment: str):
    call = step(experiment, "cuda")
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_fused_optimizer_and_clipping_go_together():
    cfg = compose(
        "train", ["experiment=toy", "data=synthetic", "data.num_workers=0", "lr_scheduler.num_warmup_steps=0"]
    )
    module, data = build.build_module(cfg), build.build_data(cfg)
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=1e-12, limit_val_batches=0, **QUIET
    )
    before = [parameter.clone() for parameter in module.denoiser.network.parameters()]
    trainer.fit(module, data)
    optimizer = trainer.optimizers[0]
    assert optimizer.defaults["fused"]
    for old, new in zip(before, module.denoiser.network.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-6)  # gradients of next to nothing move next to nothing
