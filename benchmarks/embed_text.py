"""How near embed_text comes to its encoder's bare rate: whole runs, from tars to sidecars, and forward passes alone.

    python benchmarks/embed_text.py --captions 4000

Captions are pairs of emoji names, the encoder is MiniLM. The bare passes take the very batches of the runs, tokenized
before the clock starts; rounds take turns and the medians count, since the machine may be busy with other things. On a
CPU that is, look at cpu_ratio: the processor's seconds alone.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import at_least, one_of, parser_of, prepare, record
from tqdm import tqdm

from imagen import build
from imagen.cli import compose, one_sentence
from imagen.data.shards import stats_path, write_tar
from imagen.data.tokens import STORAGES
from imagen.prep.embed_text.command import find_work
from imagen.prep.embed_text.encoding import Batch, Encoding
from imagen.text_encoder import TextEncoder

SHARD = 1000


def write_set(root: Path, count: int) -> None:
    """Image shards whose pictures are a few bytes: reading them should cost something, decoding is not asked for."""
    import emoji

    names = [emoji.demojize(sign).strip(":").replace("_", " ") for sign in emoji.EMOJI_DATA]
    captions = [f"{names[i % len(names)]} and {names[i * 7 % len(names)]}" for i in range(count)]
    for first in range(0, count, SHARD):
        tar = root / "train" / "images-64" / f"{first // SHARD:05}.tar"
        part = captions[first : first + SHARD]
        members = [(f"{i:09}.{kind}", content) for i, caption in enumerate(part) for kind, content in _sample(caption)]
        write_tar(tar, members)
        stats_path(tar).write_text(json.dumps({"successes": len(part)}))


def _sample(caption: str) -> list[tuple[str, bytes]]:
    return [("jpg", b"\0" * 4096), ("txt", caption.encode())]


class Clock:
    """Seconds on the wall and of the processor, all threads together."""

    def __init__(self) -> None:
        self.wall, self.cpu = -time.perf_counter(), -time.process_time()

    def stop(self) -> "Clock":
        self.wall += time.perf_counter()
        self.cpu += time.process_time()
        return self


def bare(encoder: TextEncoder, batches: list[Batch]) -> Clock:
    """All forward passes, one after the other."""
    clock = Clock()
    for batch in batches:
        encoder.encode_tokenized(batch.tokenized)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return clock.stop()


def measure(device: torch.device, count: int, rounds: int, storage: str) -> dict[str, Any]:
    """Both rates in captions a second, and their ratio."""
    runs: list[Clock] = []
    passes: list[Clock] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_set(root, count)
        cfg = compose("data_prep/embed_text", [f"root={root}", "text_encoder=minilm", f"storage={storage}"])
        encoder = build.build_encoder(cfg).to(device)
        limits = {"batch_size": cfg.batch_size, "max_batch_tokens": cfg.max_batch_tokens, "window": cfg.window}
        encoding = Encoding(encoder, storage, **limits, cache_bytes=0)
        batches = [item for item in encoding.prepared(find_work(cfg, encoder)[0]) if isinstance(item, Batch)]
        bare(encoder, batches[:2])  # loads the weights
        for _ in range(rounds):
            passes.append(bare(encoder, batches))
            for tar in root.rglob("text-*/*"):
                tar.unlink()
            work, _ = find_work(cfg, encoder)
            clock = Clock()
            with tqdm(total=count, disable=True) as bar:
                done = list(encoding(work, bar))
            runs.append(clock.stop())
            assert sum(sidecar.stats["successes"] for sidecar in done) == count
    distinct = sum(len(batch.entries) for batch in batches)
    alone, run = (statistics.median(clock.wall for clock in clocks) for clocks in (passes, runs))
    cpu = [statistics.median(clock.cpu for clock in clocks) for clocks in (passes, runs)]
    ratios = [one.wall / other.wall for one, other in zip(passes, runs, strict=True)]
    return {
        "captions": count,
        "encoded": distinct,
        "batches": len(batches),
        "tokens": sum(len(row) for batch in batches for row in batch.tokenized),
        "storage": storage,
        "bare_captions_per_s": round(distinct / alone, 1),
        "embed_text_captions_per_s": round(distinct / run, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "rounds": rounds,
        "cpu_ratio": round(cpu[0] / cpu[1], 3),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--captions", type=at_least(1), default=4000, help="how many are embedded")
    parser.add_argument("--storage", type=one_of(STORAGES), default="int8", help=", ".join(STORAGES))
    options = parser.parse_args()
    device = prepare(options)
    figures = measure(device, options.captions, options.rounds, options.storage)
    path = record("embed_text", f"minilm, {options.storage}", figures, device, options.results)
    print(f"{json.dumps(figures, indent=2)}\nwritten to {path}")


if __name__ == "__main__":
    with one_sentence("train"):
        main()
