"""Resize and pack shards for training: even shards of pictures at every size, keyed alike, split and indexed.

    python data_prep/pack.py input=clean root=data/mine sizes=[64,256,1024]

Run again, it redoes only the shards that are missing, were interrupted, or whose input or config changed.
"""

from imagen.cli import main
from imagen.prep.pack.command import pack

if __name__ == "__main__":
    main("data_prep/pack")(pack)()
