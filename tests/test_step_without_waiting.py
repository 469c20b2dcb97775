"""A training step asks the device for nothing: the host runs ahead of it from the first operation to the average."""

from typing import Any

import lightning
import pytest
import torch
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

from imagen import build
from imagen.cli import compose
from imagen.metrics_log import MetricsLog
from imagen.runs import RunFolder
from imagen.trainer import build_trainer

TOYS = ["experiment=toy", "experiment=toy_sr32"]
OWN = ["data=synthetic", "data.num_workers=0", "batch_size=4", "micro_batch_size=2", "max_steps=8"]
OWN += ["validate_every_n_steps=1000", "trainer.precision=bf16-mixed", "trainer.log_every_n_steps=4"]
OWN += ["callback=[progress,checkpoint,guard]", "callback.progress.refresh_every_n_steps=4"]
OWN += ["callback.checkpoint.every_n_steps=1000"]
WATCHED = {1, 2, 4, 5, 6}
"""Steps after the first, which makes an optimizer's state, that neither log nor save."""


class Reads(TorchDispatchMode):
    """Notes each operation that brings a value of a tensor to the host, while ``watching``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.watching = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = func.overloadpacket in (
            *(torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal),
            torch.ops.aten.masked_select,
        )
        if reading and self.watching:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Watch(lightning.Callback):
    """From the batch, once it is on the device, to the last of the other callbacks after the step."""

    def __init__(self) -> None:
        self.reads = Reads()
        self.reads.watching = False
        self.steps: set[int] = set()

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step in WATCHED:
            self.steps.add(trainer.global_step)
            self._watch(True)

    def on_train_batch_end(self, *args: Any) -> None:
        self._watch(False)

    def _watch(self, on: bool) -> None:
        self.reads.watching = on
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error" if on else "default")


def config(experiment: str, folder: Any, accelerator: str) -> DictConfig:
    return compose("train", [experiment, *OWN, f"trainer.accelerator={accelerator}", f"output_dir={folder}"])


def fit(cfg: DictConfig, folder: RunFolder, watch: Watch) -> lightning.Trainer:
    """As ``train`` does it, with the run's own callbacks, and the watch after them."""
    folder.path.mkdir()
    data, module = build.build_data(cfg), build.build_module(cfg)
    log = MetricsLog(folder.metrics, global_batch=cfg.batch_size, log_every_n_steps=cfg.trainer.log_every_n_steps)
    trainer = build_trainer(cfg, folder, log)
    trainer.callbacks.append(watch)
    with watch.reads:
        trainer.fit(module, data)
    assert trainer.global_step == cfg.max_steps
    assert watch.steps == WATCHED
    return trainer


@pytest.mark.parametrize("experiment", TOYS)
def test_no_value_is_read_on_the_host(experiment: str, tmp_path):
    watch = Watch()
    fit(config(experiment, tmp_path, "cpu"), RunFolder(tmp_path / "run"), watch)
    assert watch.reads.seen == []


def test_a_read_in_a_step_is_seen(tmp_path, monkeypatch):
    plain = torch.Tensor.backward

    def curious(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        assert self.item() < 1e9
        plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", curious)
    watch = Watch()
    fit(config(TOYS[0], tmp_path, "cpu"), RunFolder(tmp_path / "run"), watch)
    assert watch.reads.seen == ["aten._local_scalar_dense.default"] * 2 * len(WATCHED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("experiment", TOYS)
def test_a_gpu_is_never_waited_for(experiment: str, tmp_path):
    fit(config(experiment, tmp_path, "cuda"), RunFolder(tmp_path / "run"), Watch())


def test_a_fused_optimizer_and_clipping_go_together(tmp_path):
    clipped = ["lr_scheduler.num_warmup_steps=0", "trainer.gradient_clip_val=1e-12", "max_steps=1"]
    cfg = compose("train", [TOYS[0], *OWN, *clipped, "trainer.accelerator=cpu"])
    module, data = build.build_module(cfg), build.build_data(cfg)
    log = MetricsLog(tmp_path / "metrics.jsonl", global_batch=4, log_every_n_steps=1)
    trainer = build_trainer(cfg, RunFolder(tmp_path), log)
    before = [parameter.clone() for parameter in module.denoiser.network.parameters()]
    trainer.fit(module, data)
    optimizer = trainer.optimizers[0]
    assert optimizer.defaults["fused"]
    for old, new in zip(before, module.denoiser.network.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-6)  # gradients of next to nothing move next to nothing
