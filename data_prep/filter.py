"""Keep of shards from the web what is worth training on, and say why the rest went.

    python data_prep/filter.py input=raw output=clean safety=punsafe num_workers=8

Run again, it does only what is missing or was done by other thresholds.
"""

import sys

from imagen.cli import main

try:
    import imagehash  # noqa: F401
    import pyarrow  # noqa: F401
except ImportError as error:
    sys.exit(f"error: the package {error.name} is missing: pip install 'imagen-lab[data]'")

from imagen.prep.filter.command import filter_set

if __name__ == "__main__":
    main("data_prep/filter")(filter_set)()
