"""Reopen everything of a set of shards and say what is amiss; exit status 1 where anything is.

python data_prep/verify.py root=data/mine text_encoder=t5_xxl num_workers=8
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # first of all: to verify is no reason to download an encoder

from imagen.cli import main
from imagen.prep.verify import verify

if __name__ == "__main__":
    main("data_prep/verify")(verify)()
