"""The exact loader against a bare loop that reads and decodes the same bytes with as many workers, side by side.

    python benchmarks/loader.py --workers 2

makes a set of JPEG pictures with text embeddings in a temporary folder, reads it by turns in both ways, records samples
a second of each and their ratio, and prints what a sample costs the order alone from 1,000 to 1,000,000 samples.
"""

import io
import itertools
import json
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from common import at_least, parser_of, prepare, record, rounded
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imagen.cli import one_sentence
from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, index_of, write_index
from imagen.data.order import Deal, GlobalOrder
from imagen.data.shards import ENCODER_MEMBER, stats_path, text_folder, write_tar
from imagen.data.stream import Shard
from imagen.data.tokens import dump_tokens
from imagen.data.webdataset import WebDatasetModule
from imagen.text_encoder import Hash

BATCH = 32
WIDTH = 384


def make_set(root: Path, shards: int, count: int, size: int) -> None:
    """Shards of smooth coloured noise, about as large in JPEG as photographs, with 20 tokens each."""
    rng = np.random.default_rng(0)
    encoder = Hash(name="hash", width=WIDTH, max_length=32)
    for split, number in (("train", shards), ("val", 1)):
        for shard in range(number):
            images, texts = [], [(ENCODER_MEMBER, json.dumps(encoder.fingerprint()).encode())]
            for i in range(count):
                key, caption = f"{shard:05}{i:04}", f"picture {i} of shard {shard}"
                coarse = Image.fromarray(rng.integers(0, 256, (size // 4, size * 3 // 8, 3), dtype=np.uint8))
                jpeg = io.BytesIO()
                coarse.resize((size * 3 // 2, size), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
                info = json.dumps({"key": key, "caption": caption}).encode()
                images += [(f"{key}.json", info), (f"{key}.jpg", jpeg.getvalue()), (f"{key}.txt", caption.encode())]
                texts.append((f"{key}.safetensors", dump_tokens(torch.randn(20, WIDTH), caption)))
            tar = root / split / f"images-{size}" / f"{shard:05}.tar"
            sidecar = text_folder(root, split, encoder.name, encoder.fingerprint()) / tar.name
            for path, members, fields in ((tar, images, PICTURE_FIELDS), (sidecar, texts, TEXT_FIELDS)):
                write_index(path, index_of(write_tar(path, members).members, fields))
            stats_path(tar).write_text(json.dumps({"successes": count}))


class Bare(IterableDataset):
    """Nothing but reading both tars, decoding, cutting the middle square and stacking."""

    def __init__(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        images = []
        for images_tar, text_tar in itertools.cycle(self.pairs[first::step]):
            with tarfile.open(images_tar) as pictures, tarfile.open(text_tar) as texts:
                for member in pictures:
                    content = pictures.extractfile(member).read()  # type: ignore[union-attr]
                    if member.name.endswith(".jpg"):
                        picture = Image.open(io.BytesIO(content)).convert("RGB")
                        left = (picture.width - picture.height) // 2
                        images.append(np.asarray(picture.crop((left, 0, left + picture.height, picture.height))))
                    elif member.name.endswith(".txt"):
                        token = texts.next()
                        while token is not None and not token.name.endswith(".safetensors"):
                            token = texts.next()
                        safetensors.torch.load(texts.extractfile(token).read())  # type: ignore[arg-type,union-attr]
                    if len(images) == BATCH:
                        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
                        images = []


def rate(batches: Iterator, count: int) -> float:
    """Samples a second over ``count`` batches, after a few to warm up."""
    for _ in range(8):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - began)


def ours(root: Path, size: int, workers: int) -> Iterator:
    module = WebDatasetModule(
        Hash(name="hash", width=WIDTH, max_length=32),
        root=str(root),
        images=None,
        text=None,
        made_by="",
        resolution=size,
        crop=None,
        batch_size=BATCH,
        seed=0,
        num_workers=workers,
        multiprocessing_context=None,
        flip=False,
        random_crop=False,
        jpeg_draft=False,
        window=4,
        max_unfit=0.0,
    )
    module.setup()
    return iter(module.train_dataloader())


def order_cost() -> None:
    """Microseconds and memory of the order alone, for sets of 1,000 to 1,000,000 samples in shards of 1,000."""
    print(f"{'samples':>10}  microseconds a sample  peak memory of the process")
    for shards in (1, 10, 100, 1000):
        made = tuple(Shard(Path(f"{i:05}.tar"), None, 1000) for i in range(shards))
        order = GlobalOrder(made, 0, BATCH, 16, True)
        parts = list(itertools.islice(Deal(order, 0, 1, 1, 7, True)(), 1))
        began, count = time.perf_counter(), 0
        for part in itertools.islice(Deal(order, 0, 1, 1, 7, True)(), 2000):
            for i in range(part.count):
                order.at(part.epoch, part.bucket, part.first + i)
                count += 1
        cost = (time.perf_counter() - began) / count
        assert parts
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{shards * 1000:>10,}  {cost * 1e6:>21.1f}  {memory:>22.0f} MiB")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--workers", type=at_least(0), default=2, help="processes that read and decode; 0: the process itself"
    )
    parser.add_argument("--size", type=at_least(16), default=256, help="of the pictures, in pixels a side")
    parser.add_argument("--batches", type=at_least(1), default=60, help="batches timed in each round")
    options = parser.parse_args()
    device = prepare(options)
    order_cost()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_set(root, 4, 250, options.size)
        text = text_folder(root, "train", "hash", Hash(name="hash", width=WIDTH, max_length=32).fingerprint())
        pairs = [
            (tar, Path(str(text / tar.name)))
            for tar in sorted((root / "train" / f"images-{options.size}").glob("*.tar"))
        ]
        rates: dict[str, list[float]] = {"bare loop": [], "exact loader": []}
        for _ in range(options.rounds):
            bare = iter(DataLoader(Bare(pairs), batch_size=None, num_workers=options.workers))
            rates["bare loop"].append(rate(bare, options.batches))
            del bare
            loader = ours(root, options.size, options.workers)
            rates["exact loader"].append(rate(loader, options.batches))
            del loader
    for name, values in rates.items():
        print(f"{name:>14}: {statistics.median(values):7.0f} samples/s ({min(values):.0f} to {max(values):.0f})")
    ratios = [a / b for a, b in zip(rates["exact loader"], rates["bare loop"], strict=True)]
    print(f"exact loader / bare loop: {statistics.median(ratios):.2f}")
    figures = {"workers": options.workers, "rounds": options.rounds, "ratio": rounded(statistics.median(ratios))}
    figures |= {"ratio_low": rounded(min(ratios)), "ratio_high": rounded(max(ratios))}
    for name, values in (("samples", rates["exact loader"]), ("bare", rates["bare loop"])):
        figures[f"{name}_per_s"] = rounded(statistics.median(values))
        figures[f"{name}_per_s_low"], figures[f"{name}_per_s_high"] = rounded(min(values)), rounded(max(values))
    print(f"written to {record('loader', f'{options.size} px', figures, device, options.results)}")


if __name__ == "__main__":
    with one_sentence("train"):
        main()
