"""Sample grids during training, always with the same prompts and noise: to disk and to loggers that show pictures."""

from collections.abc import Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from imagen.data.pixels import downsample, to_float, to_uint8
from imagen.image_grid import image_grid, save_png
from imagen.lightning_module import DiffusionModule
from imagen.randomness import generator_of
from imagen.ranges import Count
from imagen.runs import RunFolder
from imagen.types import Batch, TextEmbedding


class SampleGrid(lightning.Callback):
    """Every ``every_n_steps`` draws the first ``num_prompts`` validation captions with the averaged network.

    At most those of one validation batch of this process.

    Rows: what a super-resolution stage is given, what it draws, the real picture.
    """

    def __init__(self, *, every_n_steps: Count, num_prompts: Count) -> None:
        self.every_n_steps = every_n_steps
        self.num_prompts = num_prompts
        self._batch: Batch | None = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, DiffusionModule)
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if not due or trainer.fit_loop._should_accumulate():
            return
        # every process draws, since each may hold a part of the parameters alone; the first one's grid is kept
        grid = self.draw(pl_module, self._validation_batch(trainer))
        if trainer.is_global_zero:
            save_png(grid, RunFolder.of_trainer(trainer).samples / f"step_{step:07d}.png")
            for logger in trainer.loggers:
                _show(logger, f"samples/{pl_module.stage.name}", grid, step)

    def draw(self, module: DiffusionModule, batch: Batch) -> Image.Image:
        """The grid for the first captions of ``batch``; the noise depends on the seed and the key alone."""
        stage, count = module.stage, min(self.num_prompts, len(batch))
        batch = batch.to(module.device)
        text = TextEmbedding(batch.text.tokens[:count], batch.text.mask[:count])
        real = to_float(batch.image[:count])
        low_res = None if stage.scale is None else downsample(real, stage.scale)
        generators = [generator_of(module.seed, "sample_grid", key, device=module.device) for key in batch.key[:count]]
        drawn = stage.sample(text, low_res, generators)
        rows = [("drawn", drawn), ("real", real)]
        if low_res is not None:
            rows.insert(0, ("given", low_res))
        pictures = [list(to_uint8(row).cpu()) for _, row in rows]
        return image_grid(pictures, batch.caption[:count], [name for name, _ in rows])

    def _validation_batch(self, trainer: lightning.Trainer) -> Batch:
        if self._batch is None:
            datamodule = trainer.datamodule  # type: ignore[attr-defined]
            self._batch = first_rows(datamodule.val_dataloader(), self.num_prompts)
        return self._batch


def first_rows(batches: Iterable[Batch], count: int) -> Batch:
    """So many batches that they have ``count`` rows, in one: a device may hold few pictures at once.

    Fewer where there are no more, or the next ones' pictures are of another size.
    """
    parts: list[Batch] = []
    for batch in batches:
        if parts and batch.image.shape[1:] != parts[0].image.shape[1:]:
            break
        parts.append(batch)
        if sum(map(len, parts)) >= count:
            break
    return Batch.joined(parts)


def _show(logger: object, key: str, grid: Image.Image, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [grid], step=step)
    elif isinstance(logger, TensorBoardLogger):
        pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8)
        logger.experiment.add_image(key, pixels.view(grid.height, grid.width, 3).numpy(), step, dataformats="HWC")
