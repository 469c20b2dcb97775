"""img2dataset itself, downloading from a server of our own on 127.0.0.1 into shards."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import awkward
import pyarrow as pa
import pyarrow.parquet as pq

ENVIRONMENT = Path(__file__).parents[1] / ".venv-img2dataset"
SHARD = 30  # rows a shard
SIZE = 512
# albumentations asks PyPI for its newest version when imported, unless told not to
QUIET = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "no_proxy": "127.0.0.1"}


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address under which ``folder`` is served, on a free port, as long as the context lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def scikit_image_data() -> Path:
    """The folder of pictures in scikit-image's wheel."""
    found = list(ENVIRONMENT.glob("lib/python*/site-packages/skimage/data"))
    assert found, f"{ENVIRONMENT.name} is missing or not whole: make {ENVIRONMENT.name}/.done"
    return found[0]


def url_list(file: Path, address: str, table: list[awkward.Row]) -> None:
    """A parquet with LAION's columns."""
    columns = {"URL": [f"{address}/{quote(row.file)}" for row in table], "TEXT": [row.caption for row in table]}
    scores = [awkward.SCORES | row.scores for row in table]
    pq.write_table(pa.table(columns | {name: [one[name] for one in scores] for name in awkward.SCORES}), file)


def key(row: int) -> str:
    """The key that img2dataset gives to the row of this number: five digits of shard, as many as the rows need."""
    return f"{100 * (row // SHARD) + row % SHARD:07}"


def download(output: Path, table: list[awkward.Row], *options: str) -> Path:
    """What img2dataset makes of ``table`` in ``output``, which must not exist; ``options`` are its own."""
    served = output.with_name(f"{output.name}-served")
    served.mkdir()
    awkward.write(served, table)
    urls = output.with_name(f"{output.name}.parquet")
    command = [ENVIRONMENT / "bin" / "img2dataset", "--url_list", urls, "--output_folder", output]
    command += ["--input_format", "parquet", "--url_col", "URL", "--caption_col", "TEXT"]
    command += ["--save_additional_columns", json.dumps(list(awkward.SCORES)), "--output_format", "webdataset"]
    command += ["--image_size", f"{SIZE}", "--resize_mode", "keep_ratio", "--resize_only_if_bigger", "True"]
    command += ["--number_sample_per_shard", f"{SHARD}", "--processes_count", "1", "--thread_count", "4", *options]
    with serving(served) as address:
        url_list(urls, address, table)
        result = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    sys.stdout.write(result.stdout)
    return output
