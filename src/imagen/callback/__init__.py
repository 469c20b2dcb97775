"""What happens during training beside the training itself: one class a file, one yaml each in ``conf/callback``."""

from imagen.callback.checkpoint import Checkpoint
from imagen.callback.ema_snapshots import EMASnapshots
from imagen.callback.guard import Guard
from imagen.callback.loss_by_logsnr import LossByLogSNR
from imagen.callback.progress import Progress
from imagen.callback.sample_grid import SampleGrid

__all__ = ["Checkpoint", "EMASnapshots", "Guard", "LossByLogSNR", "Progress", "SampleGrid"]
