"""Pictures in memory and in files are the same to a metric."""

import pytest
import torch
from pictures import random_pictures

from imagen.errors import UserError
from imagen.image_grid import save_png, to_pil
from imagen.metric.pictures import InFiles, InMemory


def test_files_and_memory_give_the_same_batches(tmp_path):
    images = random_pictures(5, 8)
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(files, images, strict=True):
        save_png(to_pil(image), path)
    captions = list("abcde")
    there, read = InMemory(images, captions), InFiles(files, captions)
    assert len(there) == len(read) == 5
    for one, other in zip(there.batches(2), read.batches(2), strict=True):
        assert torch.equal(one, other)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"0\.png cannot be read .* it is drawn again"):
        list(InFiles([path], ["a"]).batches(1))
