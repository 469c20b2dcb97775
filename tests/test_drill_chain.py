"""img2dataset's own shards through filter, pack, embed_text and verify into a training run, here and behind s3://."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import awkward
import numpy as np
import pytest
from awkward import Row
from img2dataset_shards import SHARD, download, scikit_image_data
from moto.server import ThreadedMotoServer
from PIL import Image

pytestmark = pytest.mark.drill

REPOSITORY = Path(__file__).parents[1]
TRAIN = ["experiment=toy", "data=webdataset", "resolution=16", "batch_size=8", "max_steps=6", "callback=[]"]
TRAIN += ["validate_every_n_steps=6", "data.num_workers=2", "trainer.accelerator=cpu"]


def run(script: str, *arguments: str, **environment: str) -> str:
    """What a script of the repository says, run as a user runs it; the test fails if it does."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return awkward.rows(scikit_image_data(), SHARD)


@pytest.fixture(scope="module", params=[(), ("--skip_reencode", "True")], ids=["reencoded", "kept"])
def raw(request: pytest.FixtureRequest, table: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download(tmp_path_factory.mktemp("raw") / "shards", table, *request.param)


def packed(root: Path) -> dict[str, tuple[dict, Image.Image]]:
    """By the name of the file served: the json of each picture of 256 pixels, and the picture."""
    found = {}
    for tar in sorted(root.glob("*/images-256/*.tar")):
        with tarfile.open(tar) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        for name, content in members.items():
            if name.endswith(".json"):
                picture = Image.open(io.BytesIO(members[name.replace(".json", ".jpg")]))
                info = json.loads(content)
                found[info["url"].rpartition("/")[2]] = (info, picture.convert("RGB"))
    return found


def test_from_img2dataset_to_training(raw: Path, tmp_path: Path):
    clean, root = tmp_path / "clean", tmp_path / "set"
    said = run("data_prep/filter.py", f"input={raw}", f"output={clean}", "safety=punsafe")
    assert "samples kept" in said
    run("data_prep/pack.py", f"input={clean}", f"root={root}", "sizes=[16,256]", "shard_size=20", "validation=0.1")
    run("data_prep/embed_text.py", f"root={root}", "text_encoder=hash", "storage=int8")
    assert "nothing was found amiss" in run("data_prep/verify.py", f"root={root}", "text_encoder=hash")

    pictures = packed(root)
    reasons = json.loads((clean / "reports" / "filter.json").read_text())
    assert len(pictures) > 80
    for file in ("constant.png", "sixteen-bit.png", "banner.png", "thumbnail.png", "rocket-copy.png"):
        assert file not in pictures, reasons
    for file, wanted in awkward.upright().items():
        if file == "turned.png":
            continue  # img2dataset loses a PNG's orientation without a trace
        info, picture = pictures[file]
        assert picture.size == (256, round(256 * wanted.height / wanted.width))
        resized = np.asarray(wanted.resize(picture.size), dtype=float)
        assert np.abs(resized - np.asarray(picture, dtype=float)).mean() < 4
        assert "Rotated" not in info["exif"]

    said = run("train.py", *TRAIN, f"data.root={root}", f"output_dir={tmp_path / 'runs'}")
    assert "finished" in said
    assert list((tmp_path / "runs").rglob("weights.safetensors"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An s3:// URL, served by a server of our own on 127.0.0.1."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import s3fs

    s3fs.S3FileSystem().mkdir("laboratory")
    yield "s3://laboratory"
    server.stop()


def test_a_bucket_serves_as_a_disk_does(bucket: str, tmp_path: Path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(pictures / f"{i}.jpg")
        (pictures / f"{i}.txt").write_text(f"picture number {i}")
    run("data_prep/folder.py", f"input={pictures}", f"output={bucket}/raw", "shard_size=12")
    limits = ["safety=none", "min_size=16"]
    run("data_prep/filter.py", f"input={bucket}/raw", f"output={bucket}/clean", *limits)
    sizes = ["sizes=[16,32]", "shard_size=10", "validation=4"]
    run("data_prep/pack.py", f"input={bucket}/clean", f"root={bucket}/set", *sizes)
    run("data_prep/embed_text.py", f"root={bucket}/set", "text_encoder=hash")
    assert "nothing was found amiss" in run("data_prep/verify.py", f"root={bucket}/set", "text_encoder=hash")
    assert "finished" in run("train.py", *TRAIN, f"data.root={bucket}/set", f"output_dir={tmp_path / 'runs'}")
