"""Write a folder of your own captioned pictures as LAION-style shards, their bytes unchanged.

    python data_prep/folder.py input=pictures output=clean

Run again, it redoes only the shards that are missing, were interrupted, or whose files changed.
"""

from imagen.cli import main
from imagen.prep.folder import pack_folder

if __name__ == "__main__":
    main("data_prep/folder")(pack_folder)()
