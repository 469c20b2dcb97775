"""Encode captions once: for every image shard a sidecar tar of text embeddings, keyed like the pictures, unpadded.

    python data_prep/embed_text.py root=data/openmoji text_encoder=minilm

Run again, it redoes only the shards whose captions or encoder changed or that are missing.
"""

from imagen.cli import main
from imagen.prep.embed_text.command import embed_set

if __name__ == "__main__":
    main("data_prep/embed_text")(embed_set)()
