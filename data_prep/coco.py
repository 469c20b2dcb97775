"""COCO's validation set: the 30,000 prompts of the paper's FID, and the reference pictures as shards.

python data_prep/coco.py input=coco output=data/coco
python sample.py prompts=data/coco/prompts.csv ...
python data_prep/pack.py input=data/coco root=data/coco256 sizes=[256] format=png validation=0
"""

from imagen.cli import main
from imagen.prep.coco import coco

if __name__ == "__main__":
    main("data_prep/coco")(coco)()
