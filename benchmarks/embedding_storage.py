"""What a caption's text embedding takes on disk: as stored here, by encoder and code, and as peers pad it.

python benchmarks/embedding_storage.py: prints a Markdown table. Captions are the short names of all emoji in the
package emoji; their lengths are by MiniLM's tokenizer, special tokens too, whatever the encoder (T5's own differ by a
token or two). Sizes are of real members in real tars, of numbers that are all zero.
"""

import tempfile
from pathlib import Path

import torch
from common import Parser

from imagen import build
from imagen.cli import CONF, compose
from imagen.config_check import read_yaml
from imagen.data import tokens
from imagen.data.shards import write_tar

V1_1 = ("t5_small", "t5_base", "t5_large", "t5_xl", "t5_xxl")
FIRST = {"T5 3B, T5 11B": 1024}
"""Of the first release; its smaller sizes are as wide as those of v1.1."""

PADDED_TO = 128


def emoji_names() -> list[str]:
    """The short names of all emoji, as words."""
    import emoji

    names = (emoji.demojize(sign).strip(":").replace("_", " ") for sign in emoji.EMOJI_DATA)
    return sorted({name for name in names if name.isascii()})


def measured(lengths: list[int], width: int, storage: str) -> float:
    """Bytes a caption in a tar; that the promised bounds hold is asserted."""
    members = [tokens.dump_tokens(torch.zeros(length, width), str(i), storage) for i, length in enumerate(lengths)]
    for length, member in zip(lengths, members, strict=True):
        assert len(member) <= length * (width + 2 if storage == "int8" else 2 * width) + 200
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "00000.tar"
        write_tar(tar, ((f"{i:09}.safetensors", member) for i, member in enumerate(members)))
        payload, whole = sum(map(len, members)), tar.stat().st_size
    assert whole <= payload + 1100 * len(members) + 10_240  # a tar's last record is filled up
    return whole / len(members)


def main() -> None:
    """Print the table."""
    Parser(__doc__).parse_args()
    encoder = build.build_encoder(compose("data_prep/embed_text", ["text_encoder=minilm"]))
    widths = {f"T5 v1.1 {name[3:]}": read_yaml(CONF / "text_encoder" / f"{name}.yaml")["width"] for name in V1_1}
    captions = emoji_names()
    lengths = [len(row) for row in encoder.tokenize(captions)]
    mean = sum(lengths) / len(lengths)
    print(f"{len(captions):,} names of emoji, {mean:.1f} tokens each by MiniLM's tokenizer (at most {max(lengths)}).")
    print("Bytes a caption, with all that the tar adds:\n")
    print(f"| encoder | width | fp16 or bf16 | int8 | padded to {PADDED_TO}, 16 bits | padded / int8 |")
    print("|---|---|---|---|---|---|")
    for name, width in {**widths, **FIRST}.items():
        full, coded = (measured(lengths, width, storage) for storage in ("fp16", "int8"))
        padded = PADDED_TO * width * 2
        print(f"| {name} | {width} | {full:,.0f} | {coded:,.0f} | {padded:,} | {padded / coded:.0f} |")


if __name__ == "__main__":
    main()
