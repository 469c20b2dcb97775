"""A whole set is found whole; every kind of finding is found in a set in which that very fault was planted."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from imagen.cli import compose
from imagen.data import shards, tokens
from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, index_of, index_path, scan, write_index
from imagen.data.writer import Entry, sample_row, write_shard
from imagen.errors import UserError
from imagen.files import locate, write_json
from imagen.prep.verify import verify
from imagen.prep.verify.findings import EXAMPLES, KINDS, Findings
from imagen.prep.verify.whole_tar import WholeTar
from imagen.text_encoder import Hash

ENCODER = Hash(name="hash", width=8, max_length=16)
SIZES, SHARDS, SAMPLES = (8, 16), 2, 3


def png(number: int, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (number, 7, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(shard: int, number: int) -> str:
    return f"shard {shard} shows picture {number}" + " once more" * number


def write_text(folder, shard: int, storage: str = "fp16", encoder: Hash = ENCODER) -> None:
    """A sidecar with its index and, last, its stats."""
    members = [(shards.ENCODER_MEMBER, json.dumps(encoder.fingerprint()).encode())]
    for i in range(SAMPLES):
        rows = encoder.encode([caption(shard, i)]).tokens[0]
        members.append((f"{shard:05}{i}.safetensors", tokens.dump_tokens(rows, caption(shard, i), storage)))
    finish(folder / f"{shard:05}.tar", members, TEXT_FIELDS, {})


def finish(tar, members, fields, stats) -> None:
    written = shards.write_tar(tar, members)
    write_index(tar, index_of(written.members, fields))
    write_json(shards.stats_path(tar), {"successes": SAMPLES, "recipe": {}} | stats | {"sha256": written.sha256})


def write_set(root, storage: str = "fp16") -> None:
    for split in shards.SPLITS:
        for shard in range(SHARDS):
            for size in SIZES:
                entries = []
                for i in range(SAMPLES):
                    row = sample_row(f"{shard:05}{i}", caption(shard, i), (size + i, size), (99, 99), "")
                    entries.append(Entry(row, png(i, size + i, size), "png"))
                tar = shards.images_folder(root, split, size) / f"{shard:05}.tar"
                write_shard(tar, entries, started=0.0, recipe={}, shards=SHARDS)
            folder = shards.text_folder(root, split, ENCODER.name, ENCODER.fingerprint(), storage)
            write_text(folder, shard, storage)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_set(root)
    return root


@pytest.fixture
def root(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "set"))


@pytest.fixture(scope="module")
def config():
    overrides = ["root=?", "text_encoder=hash", "text_encoder.width=8", "text_encoder.max_length=16"]
    return compose("data_prep/verify", overrides)


def found(config, root, **changed) -> set[str]:
    """The kinds of finding in the report, after the exit status and it were seen to agree."""
    cfg = config.copy()
    cfg.root = str(root)
    for key, value in changed.items():
        cfg[key] = value
    status = 0
    try:
        verify(cfg)
    except SystemExit as stopped:
        status = stopped.code
    kinds = set(json.loads((locate(str(root)) / "reports" / "verify.json").read_text())["findings"])
    assert status == (1 if kinds else 0)
    return kinds


def images(root, size: int = 16, shard: int = 1):
    return root / "train" / f"images-{size}" / f"{shard:05}.tar"


def sidecar(root, shard: int = 1):
    return shards.text_folder(root, "train", ENCODER.name, ENCODER.fingerprint()) / f"{shard:05}.tar"


def members_of(tar) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def again(tar, change, *, index: bool = True, parquet: bool = True, **stats) -> None:
    """Write a tar anew with changed members, and all that lies beside it, so that nothing else is amiss."""
    members = list(change(members_of(tar)))
    kept = json.loads(shards.stats_path(tar).read_text())
    written = shards.write_tar(tar, members)
    if index:
        fields = TEXT_FIELDS if tar.parent.name.startswith("text") else PICTURE_FIELDS
        write_index(tar, index_of(written.members, fields))
    write_json(shards.stats_path(tar), kept | {"sha256": written.sha256} | stats)


def digest(tar) -> str:
    return hashlib.sha256(tar.read_bytes()).hexdigest()


def swap(name: str, content: bytes | None):
    """A change of the member that ends so in every sample but the first: None drops it."""

    def change(members):
        for i, (member, old) in enumerate(members):
            if i >= 3 and member.endswith(name):
                if content is not None:
                    yield member, content
            else:
                yield member, old

    return change


def dumped(rows: torch.Tensor, text: str, storage: str = "fp16") -> bytes:
    return tokens.dump_tokens(rows, text, storage)


def tokens_of(number: int, shard: int = 1) -> torch.Tensor:
    return ENCODER.encode([caption(shard, number)]).tokens[0]


def put_tokens(root, content: bytes) -> None:
    again(sidecar(root), swap("2.safetensors", content))


def remove(tar, *, only: str = "") -> None:
    for path in list(tar.parent.iterdir()):
        if path.name.startswith(tar.stem) and path.name.endswith(only):
            path.unlink()


def cut(tar, keep: float) -> None:
    content = tar.read_bytes()
    tar.write_bytes(content[: int(len(content) * keep)])


def without_end_mark(tar) -> None:
    with tarfile.open(tar) as archive:
        last = archive.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset_data + (last.size + 511) // 512 * 512])


def flip(tar, member: int, offset: int) -> None:
    """Flip a bit of a member, counted from its header."""
    with tarfile.open(tar) as archive:
        start = archive.getmembers()[member].offset
    content = bytearray(tar.read_bytes())
    content[start + offset] ^= 1
    tar.write_bytes(content)


def unpromised(root) -> None:
    for path in list(images(root, 8).parent.iterdir()):
        if path.name.startswith("00001"):
            shutil.copy(path, path.with_name(path.name.replace("00001", "00002")))


def stats(tar, **changed) -> None:
    write_json(shards.stats_path(tar), json.loads(shards.stats_path(tar).read_text()) | changed)


def lose_a_row(tar) -> None:
    path = tar.with_suffix(".parquet")
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(1), path)


def other_encoder(members):
    fingerprint = ENCODER.fingerprint() | {"max_length": 9}
    return [(shards.ENCODER_MEMBER, json.dumps(fingerprint).encode()), *members[1:]]


def other_weights(root) -> None:
    """Every sidecar as another release of the same encoder would have made it."""
    said = ENCODER.fingerprint() | {"weights": "others"}
    for split in shards.SPLITS:
        old = shards.text_folder(root, split, ENCODER.name, ENCODER.fingerprint())
        new = old.rename(shards.text_folder(root, split, ENCODER.name, said))
        for tar in new.glob("*.tar"):
            again(tar, lambda members: [(members[0][0], json.dumps(said).encode()), *members[1:]])


def huge_png() -> bytes:
    content = bytearray(png(0, 8, 8))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


NAN = torch.full((3, 8), float("nan"))
BEHIND = {
    "missing member": {"wrong caption"},
    "wrong sha256": {"undecodable picture"},
    "damaged tar": {"wrong sha256", "missing member"},
}
FAULTS = {
    "unfinished shard": [
        lambda root: shards.stats_path(images(root)).unlink(),
        lambda root: shards.stats_path(sidecar(root)).unlink(),
    ],
    "missing folder": [
        lambda root: shutil.rmtree(images(root).parent),
        lambda root: shutil.rmtree(sidecar(root).parent),
        lambda root: shutil.rmtree(root / "train"),
        lambda root: [shutil.rmtree(folder) for folder in root.glob("*/text-*")],
    ],
    "missing tar": [
        lambda root: remove(images(root)),
        lambda root: [remove(tar) for tar in (images(root), images(root, 8), sidecar(root))],
    ],
    "missing sidecar": [lambda root: remove(sidecar(root))],
    "extra tar": [lambda root: write_text(sidecar(root).parent, 7), unpromised],
    "missing file": [
        lambda root: index_path(images(root)).unlink(),
        lambda root: index_path(sidecar(root)).unlink(),
        lambda root: images(root).with_suffix(".parquet").unlink(),
    ],
    "damaged tar": [
        lambda root: cut(images(root), 0),
        lambda root: cut(images(root), 0.31),
        lambda root: without_end_mark(images(root)),
        lambda root: flip(images(root), 4, 3),
        lambda root: cut(sidecar(root), 0.2),
    ],
    "damaged stats": [
        lambda root: shards.stats_path(images(root)).write_text('{"successes": 3'),
        lambda root: stats(images(root), successes="three"),
    ],
    "damaged parquet": [
        lambda root: images(root).with_suffix(".parquet").write_bytes(b"PAR1"),
        lambda root: lose_a_row(images(root)),
        lambda root: (lose_a_row(images(root)), stats(images(root), count=SAMPLES - 1)),
    ],
    "damaged json": [lambda root: again(images(root), swap(".json", b'{"caption": '))],
    "wrong count": [
        lambda root: stats(images(root), successes=SAMPLES + 1),
        lambda root: stats(sidecar(root), successes=SAMPLES - 1),
    ],
    "wrong sha256": [lambda root: flip(images(root), 4, 512 + 60), lambda root: stats(sidecar(root), sha256="0" * 64)],
    "stale index": [
        lambda root: again(images(root), lambda members: members[3:] + members[:3], index=False),
        lambda root: again(sidecar(root), lambda members: [members[0], *members[:0:-1]], index=False),
        lambda root: index_path(images(root)).write_bytes(b"no array"),
    ],
    "duplicate key": [
        lambda root: again(images(root), lambda members: members + members[:3]),
        lambda root: again(sidecar(root), lambda members: members + members[1:2]),
    ],
    "missing member": [
        lambda root: again(images(root), swap("2.png", None)),
        lambda root: again(images(root), swap("2.txt", None)),
    ],
    "missing key": [
        lambda root: again(images(root), lambda members: members[:6], successes=2),
        lambda root: again(sidecar(root), lambda members: members[:3], successes=2),
    ],
    "extra key": [
        lambda root: again(
            sidecar(root), lambda members: [*members, ("other.safetensors", members[1][1])], successes=4
        ),
    ],
    "wrong caption": [
        lambda root: put_tokens(root, dumped(tokens_of(1), caption(1, 1))),
        lambda root: again(images(root), swap("2.txt", b"something else")),
    ],
    "undecodable picture": [
        lambda root: again(images(root), swap("2.png", png(0, 16, 16)[:60])),
        lambda root: again(images(root), swap("2.png", b"")),
        lambda root: again(images(root), swap("2.png", huge_png())),
    ],
    "wrong size": [
        lambda root: again(images(root), swap("2.png", png(0, 16, 15))),
        lambda root: again(images(root), lambda members: members, shape=[16, 16]),
    ],
    "wrong encoder": [
        lambda root: again(sidecar(root), other_encoder),
        lambda root: again(sidecar(root), lambda members: members[1:]),
        other_weights,
    ],
    "damaged tokens": [
        lambda root: put_tokens(root, b"no safetensors"),
        lambda root: put_tokens(root, b"\x80\x04K\x01."),
        lambda root: put_tokens(root, b""),
    ],
    "wrong shape": [
        lambda root: put_tokens(root, dumped(tokens_of(2)[:, :7], caption(1, 2))),
        lambda root: put_tokens(root, dumped(tokens_of(2)[:0], caption(1, 2))),
        lambda root: put_tokens(root, dumped(tokens_of(2), caption(1, 2), "bf16")),
    ],
    "not finite": [lambda root: put_tokens(root, dumped(NAN, caption(1, 2)))],
    "other tokens": [
        lambda root: put_tokens(root, dumped(tokens_of(1), caption(1, 2))),
        lambda root: put_tokens(root, dumped(tokens_of(2).flip(0), caption(1, 2))),
        lambda root: put_tokens(root, dumped(1.02 * tokens_of(2), caption(1, 2))),
    ],
}


def test_every_kind_of_finding_has_a_fault():
    assert list(FAULTS) == list(KINDS)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [pytest.param(kind, plant, id=f"{kind} {i}") for kind in FAULTS for i, plant in enumerate(FAULTS[kind])],
)
def test_a_planted_fault_is_found_and_no_other(config, root, capsys, kind, plant):
    plant(root)
    kinds = found(config, root)
    assert kind in kinds
    behind = BEHIND.get(kind, set())  # what the same fault causes
    assert kinds - {kind} <= behind
    said = capsys.readouterr().out
    assert f"{kind}  " in said
    assert "train/" in said.split(f"\n{kind}  ")[1].splitlines()[0]


@pytest.mark.parametrize("storage", tokens.STORAGES)
def test_a_whole_set_is_found_whole(config, tmp_path, capsys, storage):
    write_set(tmp_path, storage)
    assert found(config, tmp_path) == set()
    said = capsys.readouterr().out
    assert "nothing was found amiss" in said
    report = json.loads((tmp_path / "reports" / "verify.json").read_text())
    assert report["checked"] == {
        "pictures decoded": 24,
        "samples": 24,
        "tars": 12,
        "embeddings": 12,
        "captions encoded again": 12,
    }
    assert report["not_checked"] == {}
    (worst,) = {error > 1e-5 for error in report["largest_error"].values()}
    assert worst, "rounding was measured"


ODD_NAMES = [
    "../../outside.txt",
    "/root/absolute.json",
    "of.no.kind",
    "a\udcff.txt",
    "n" * 150 + ".txt",
    "שלום.txt",
    ".txt",
]


def test_odd_members_are_only_names(config, root):
    """A pickle is not opened, a name leads nowhere; each that looks like a sample lacks its picture."""
    code = b'cbuiltins\nexec\n(S\'open("pwned", "w")\'\ntR.'
    pickles = [(f"000010.{kind}", code) for kind in ("pickle", "pyd", "pth")]
    whole = members_of(images(root))
    with tarfile.open(images(root), "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in [*whole, *((name, b"{}") for name in ODD_NAMES), *pickles]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    write_index(images(root), scan(images(root), PICTURE_FIELDS))
    odd = SAMPLES + len(ODD_NAMES) - 1
    stats(images(root), sha256=digest(images(root)), successes=odd, count=odd)
    kinds = found(config, root)
    assert {"missing member", "damaged parquet"} <= kinds <= {"missing member", "missing key", "damaged parquet"}
    assert not Path("pwned").exists()


def test_buckets_have_a_shape_of_their_own(config, root):
    for split in shards.SPLITS:
        for size in SIZES:
            folder = shards.images_folder(root, split, size)
            renamed = folder.rename(folder.with_name(f"{folder.name}-buckets"))
            for tar in renamed.glob("*.tar"):
                height, width = size // 2, 2 * size
                again(tar, lambda members, size=(width, height): bucketed(members, *size), shape=[height, width])
    assert found(config, root) == set()
    stats(root / "train" / "images-16-buckets" / "00001.tar", shape=[16, 16])
    assert found(config, root) == {"wrong size"}


def bucketed(members, width: int, height: int):
    return [(name, png(0, width, height) if name.endswith(".png") else content) for name, content in members]


def test_a_set_behind_a_url(config):
    root = locate("memory://verified/set")
    write_set(root)
    assert found(config, root) == set()
    assert found(config, root, num_workers=0, worker_index=0) == set()


def test_what_img2dataset_wrote_has_no_hash_and_no_index(config, root, capsys):
    for path in root.rglob("*_index.npy"):
        path.unlink()
    for path in root.rglob("*_stats.json"):
        path.write_text(json.dumps({"count": SAMPLES, "successes": SAMPLES}))
    assert found(config, root) == set()
    said = capsys.readouterr().out
    assert "not checked: tars without a recorded sha256, 12 times" in said
    assert "not checked: tars without index, 12 times" in said


@pytest.mark.parametrize("place", [images, sidecar])
def test_a_tar_cut_anywhere_or_with_any_bit_flipped_is_found(whole, tmp_path, place):
    content = place(whole).read_bytes()
    tar, good = tmp_path / "00000.tar", digest(place(whole))
    rng = np.random.default_rng(0)
    for _ in range(150):
        at, cut_at = int(rng.integers(len(content))), int(rng.integers(len(content)))
        flipped = content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
        for broken in (content[:cut_at], flipped):
            tar.write_bytes(broken)
            read = WholeTar(tar, lambda name: True)
            list(read)
            assert read.damage or read.sha256 != good
    for cut_at in range(0, len(content.rstrip(b"\0")), 512):  # what no hash was recorded of
        tar.write_bytes(content[:cut_at])
        read = WholeTar(tar, lambda name: True)
        list(read)
        assert read.damage


def test_a_part_of_the_pictures_and_captions(config, root):
    again(images(root), swap("2.png", b"no picture"))
    assert found(config, root, fraction=0.0, captions=0) == set()
    report = json.loads((root / "reports" / "verify.json").read_text())
    assert "pictures decoded" not in report["checked"]
    assert "captions encoded again" not in report["checked"]
    assert found(config, root, captions=2) == {"undecodable picture"}
    assert json.loads((root / "reports" / "verify.json").read_text())["checked"]["captions encoded again"] == 8


def test_embeddings_by_another_encoder_are_told_as_not_checked(config, root, capsys):
    other = config.copy()
    other.text_encoder.max_length = 12
    assert found(other, root) == set()
    said = capsys.readouterr().out
    assert "(not by text_encoder=hash)" in said
    assert "not checked: captions (no embeddings by text_encoder=hash)" in said


def test_pictures_alone_are_whole_where_no_embeddings_are_asked_for(config, root):
    for folder in root.glob("*/text-*"):
        shutil.rmtree(folder)
    assert found(config, root, captions=0) == set()


def test_an_encoder_without_weights_here_is_told(root, tmp_path, capsys):
    cfg = compose("data_prep/verify", [f"root={root}", "text_encoder=t5_small", f"text_encoder.path={tmp_path}"])
    said = build_declared(cfg) | {"weights": "there", "tokenizer": "there"}
    for split in shards.SPLITS:
        shutil.rmtree(shards.text_folder(root, split, ENCODER.name, ENCODER.fingerprint()))
        folder = shards.text_folder(root, split, "t5_small", said)
        for shard in range(SHARDS):
            rows = [(f"{shard:05}{i}", caption(shard, i)) for i in range(SAMPLES)]
            made = [(f"{key}.safetensors", dumped(torch.ones(2, said["width"]), text)) for key, text in rows]
            members = [(shards.ENCODER_MEMBER, json.dumps(said).encode()), *made]
            finish(folder / f"{shard:05}.tar", members, TEXT_FIELDS, {})
    verify(cfg)
    told = capsys.readouterr().out
    assert "not checked: captions of train/text-t5_small" in told
    assert f"text_encoder.path={tmp_path}" in told
    assert "captions encoded again" not in told


def build_declared(cfg) -> dict:
    from imagen.build import build_encoder

    return build_encoder(cfg).declared()


def test_workers_take_their_share_and_report_apart(config, root):
    cut(images(root), 0.5)
    kinds = []
    for index in range(2):
        cfg = config.copy()
        cfg.root, cfg.worker_index, cfg.worker_count = str(root), index, 2
        if index:
            with pytest.raises(SystemExit):
                verify(cfg)
        else:
            verify(cfg)
        kinds.append(set(json.loads((root / "reports" / f"verify-{index}-of-2.json").read_text())["findings"]))
    assert kinds[0] == set()
    assert "damaged tar" in kinds[1]


def test_examples_are_few_and_sums_add_up():
    parts = [Findings(), Findings()]
    for i in range(3 * EXAMPLES):
        parts[i % 2].add("missing key", f"sample {i}")
    parts[0].merge(parts[1])
    assert parts[0].found["missing key"] == 3 * EXAMPLES
    assert len(parts[0].examples["missing key"]) == EXAMPLES


@pytest.mark.parametrize("override", ["fraction=1.5", "captions=-1", "root=/nowhere"])
def test_nothing_to_check_is_refused(tmp_path, override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        verify(compose("data_prep/verify", [f"root={tmp_path}", "text_encoder=hash", override]))


def test_the_script_exits_with_1(root):
    cut(images(root), 0.7)
    options = ["text_encoder=hash", "text_encoder.width=8", "text_encoder.max_length=16", "num_workers=2"]
    script = Path(__file__).parents[1] / "data_prep" / "verify.py"
    result = subprocess.run([sys.executable, script, f"root={root}", *options], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "damaged tar" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_shard_from_when_the_set_was_smaller_hides_no_other(config, root):
    for size in (8, 16):
        stats(images(root, size, shard=0), shards=1)
    assert found(config, root) == set()
