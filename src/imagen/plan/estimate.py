"""What a training run takes of a machine, from its network's counts and what is assumed of the machine.

Forward and backward take their operations at a share of the GPU's peak; what selective recomputation repeats, and the
update of weights, optimizer and average, the bytes that they read and write. Gradients and shards go round in rings,
hidden behind the work that they can be hidden behind, and the data is read meanwhile.
"""

import math
from dataclasses import dataclass
from itertools import product

from omegaconf import DictConfig

from imagen.data.tokens import member_bytes, tar_bytes
from imagen.devices import PEAK_FLOPS
from imagen.micro_batch import accumulation
from imagen.plan.counts import Counts

WEIGHT_BYTES = 4
BF16_BYTES = 2


@dataclass(frozen=True)
class GPU:
    """Its name as CUDA gives it, memory in bytes (nvidia-smi's), dense bf16 peak in FLOP/s, its memory's bytes/s."""

    name: str
    memory: int
    peak: float
    bandwidth: float


GPUS = {
    "h100": GPU("NVIDIA H100 80GB HBM3", 81559 * 2**20, PEAK_FLOPS["H100"], 3.35e12),
    "h200": GPU("NVIDIA H200", 143771 * 2**20, PEAK_FLOPS["H200"], 4.8e12),
}


RECOMPUTE = ("none", "selective", "full")
"""The options of ``conf/recompute``."""


@dataclass(frozen=True)
class Way:
    """How the network lies on the GPUs, whole on each (DDP) or in shards (FSDP2), and what it computes again."""

    sharded: bool
    recompute: str

    @property
    def name(self) -> str:
        strategy = "FSDP2" if self.sharded else "DDP"
        return strategy if self.recompute == "none" else f"{strategy}, {self.recompute}"


WAYS = [Way(sharded, recompute) for sharded, recompute in product((False, True), RECOMPUTE)]


@dataclass(frozen=True)
class Run:
    """One stage's training: counts of its network, global batch, steps, and bytes of a picture with its text.

    ``micro_batch_size`` is the most that a GPU holds at once; None: as many as fit.
    """

    name: str
    counts: Counts
    batch_size: int
    steps: int
    picture_bytes: int
    text_bytes: int
    micro_batch_size: int | None = None

    @property
    def sample_bytes(self) -> int:
        return self.picture_bytes + self.text_bytes


def describe(cfg: DictConfig, counts: Counts, assumed: DictConfig) -> Run:
    """The run of a training config, its data stored as ``data_prep`` stores it."""
    picture = tar_bytes(round(cfg.resolution**2 * assumed.pixel_bytes))
    beside = tar_bytes(assumed.caption_bytes) + tar_bytes(assumed.json_bytes)
    text = tar_bytes(member_bytes(assumed.caption_tokens, cfg.text_encoder.width, assumed.storage))
    return Run(cfg.name, counts, cfg.batch_size, cfg.max_steps, picture + beside, text, cfg.micro_batch_size)


@dataclass(frozen=True)
class Estimate:
    """One way on so many GPUs; ``micro_batch`` is 0 where not even one picture fits, and then there are no times.

    Bytes are of each GPU, ``network_bytes`` sent in a step; times are seconds of a step, of ``network`` what cannot be
    hidden; ``data`` is what reading takes meanwhile.
    """

    way: Way
    gpus: int
    state_bytes: int
    picture_bytes: int
    micro_batch: int
    accumulation: int
    network_bytes: float
    compute: float
    network: float
    update: float
    data: float

    @property
    def memory(self) -> int:
        return self.state_bytes + self.micro_batch * self.picture_bytes

    @property
    def step(self) -> float:
        return max(self.compute + self.network + self.update, self.data)

    @property
    def limit(self) -> str:
        """What the step waits for longest; memory where nothing fits."""
        if not self.micro_batch:
            return "memory"
        if self.data >= self.step:
            return "data"
        return max(("compute", "network", "update"), key=lambda part: getattr(self, part))


def estimate(run: Run, way: Way, gpus: int, gpu: GPU, utilisation: float, assumed: DictConfig) -> Estimate:
    """One way on so many GPUs, of whose peak ``utilisation`` is reached.

    Raises: UserError if there are fewer pictures in a batch than GPUs.
    """
    counts, share = run.counts, -(-run.batch_size // gpus)  # of the GPU that has the most
    state, picture = state_bytes(counts, way, gpus), counts.kept_bytes[way.recompute]
    room = max(0, int(assumed.memory_share * gpu.memory) - state) // picture
    accumulated = accumulation(run.batch_size, max(1, min(room, run.micro_batch_size or room)), gpus)
    micro_batch = -(-share // accumulated) if room else 0
    sent = network_bytes(counts, way, gpus, accumulated, assumed)

    flops = counts.step_flops + (way.recompute == "full") * counts.forward_flops
    moving = assumed.bandwidth_share * gpu.bandwidth
    repeated = counts.repeated_bytes / moving if way.recompute == "selective" else 0.0
    compute = share * (flops / (utilisation * gpu.peak) + repeated)
    weights = WEIGHT_BYTES * counts.parameters
    # the optimizer reads weights, gradients and state and writes weights and state; the average reads weights and both
    moved = 4 * weights + 2 * counts.optimizer_bytes + 2 * counts.ema_bytes
    update = moved / (gpus if way.sharded else 1) / moving
    # shards travel behind all of the work, DDP's gradients behind the last micro-batch's backward pass
    hidden = compute if way.sharded else compute / accumulated * (1 - counts.forward_flops / flops)
    network = max(0.0, sent / _link(gpus, assumed) - hidden)
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    data = run.batch_size * run.sample_bytes / nodes / (assumed.read_gbytes * 1e9)
    return Estimate(way, gpus, state, picture, micro_batch, accumulated, sent, compute, network, update, data)


def state_bytes(counts: Counts, way: Way, gpus: int) -> int:
    """What a GPU holds beside activations: weights, gradients, optimizer, average, and bf16 copies of weights."""
    whole = 2 * WEIGHT_BYTES * counts.parameters + counts.optimizer_bytes + counts.ema_bytes
    copies = BF16_BYTES * counts.parameters
    if not way.sharded:
        return whole + copies
    # gathered at one time: what belongs to no block, a block and the next; and a block's gradient
    gathered = counts.root_parameters + 2 * counts.block_parameters
    return math.ceil(whole / gpus) + copies + WEIGHT_BYTES * (gathered + counts.block_parameters)


def network_bytes(counts: Counts, way: Way, gpus: int, accumulation: int, assumed: DictConfig) -> float:
    """What each GPU sends in a step, in rings.

    DDP sums gradients once; FSDP2 gathers weights for the forward and again for the backward pass and sums gradients,
    for every micro-batch.
    """
    ring = (gpus - 1) / gpus * counts.parameters
    if way.sharded:
        return accumulation * ring * 3 * WEIGHT_BYTES
    return 2 * ring * assumed.gradient_bytes


def _link(gpus: int, assumed: DictConfig) -> float:
    """Bytes a second that a ring moves past each GPU; rings leave a node through all its ports together."""
    across = assumed.network_gbytes if gpus > assumed.gpus_per_node else math.inf
    return assumed.bandwidth_share * min(assumed.nvlink_gbytes, across) * 1e9
