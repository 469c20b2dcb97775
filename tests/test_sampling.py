import json

import torch
from PIL import Image

from imagen.cascade import Samples
from imagen.sampling import save


def test_every_picture_is_written_with_its_prompt_and_the_grid(tmp_path):
    stages = [torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 3, 16, 16), 200, dtype=torch.uint8)]
    save(Samples(["a", "b"], stages), tmp_path, {"seed": 7})
    listing = json.loads((tmp_path / "samples.json").read_text())
    assert listing["seed"] == 7
    assert [(row["file"], row["prompt"]) for row in listing["pictures"]][3] == ("001_0.png", "b")
    with Image.open(tmp_path / "001_2.png") as picture, Image.open(tmp_path / "grid.png") as grid:
        assert picture.getpixel((3, 3)) == (200, 200, 200)
        assert grid.width > 6 * 128
