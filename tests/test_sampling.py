import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import build
from imagen.cascade import Samples
from imagen.cli import compose
from imagen.data.pixels import to_uint8
from imagen.errors import UserError
from imagen.runs import Weights
from imagen.sampling import sample, save
from imagen.slots import register
from imagen.task.picture import picture_at
from tests.pictures import half_mask, picture


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> list[str]:
    """An untrained base and super-resolution stage of two steps, and a user's pictures beside them."""
    folder = tmp_path_factory.mktemp("exports")
    for name in ("toy", "toy_sr32"):
        cfg = compose("train", [f"experiment={name}", "sampler.num_steps=2"])
        module = build.build_module(cfg)
        fingerprint = build.build_encoder(cfg).fingerprint()
        Weights(module.state_to_export(), build.run_config(cfg), fingerprint, 0).save(folder / f"{name}.safetensors")
    picture(48, 32).save(folder / "photo.png")
    half_mask(48, 32).save(folder / "mask.png")
    return [str(folder / "toy.safetensors"), str(folder / "toy_sr32.safetensors")]


def draw(stages: list[str], folder: Path, *arguments: str) -> Path:
    """What ``sample.py`` does with these arguments."""
    command = [f"stages=[{','.join(stages)}]", "device=cpu", f"output_dir={folder}", *arguments]
    register(command)
    return sample(compose("sample", command))


def test_every_picture_is_written_with_its_prompt_and_the_grid(tmp_path):
    stages = [torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 3, 16, 16), 200, dtype=torch.uint8)]
    save(Samples(["a", "b"], stages), tmp_path, {"seed": 7})
    listing = json.loads((tmp_path / "samples.json").read_text())
    assert listing["seed"] == 7
    assert listing["size"] == [16, 16]
    assert [(row["file"], row["prompt"]) for row in listing["pictures"]][3] == ("001_0.png", "b")
    with Image.open(tmp_path / "001_2.png") as drawn, Image.open(tmp_path / "grid.png") as grid:
        assert drawn.getpixel((3, 3)) == (200, 200, 200)
        assert grid.width > 6 * 128


def drawn(folder: Path) -> bytes:
    return (folder / "000_0.png").read_bytes()


def test_offload_draws_the_same_bytes_and_the_memory_it_took_is_told(exports, tmp_path, capsys):
    plain, offloaded = (draw(exports, tmp_path, 'prompts=["a"]', f"offload={on}") for on in ("false", "true"))
    assert drawn(plain) == drawn(offloaded)
    assert re.search(r"at most [0-9.]+ GiB of memory of cpu\n", capsys.readouterr().out)


def test_precision_is_as_trained_or_as_told(exports, tmp_path):
    def widths(precision: str | None) -> list[set[torch.dtype]]:
        stages = build.load_cascade(exports, device="cpu", precision=precision).stages
        assert {stage.bf16 for stage in stages} == {precision == "bf16"}  # toys are trained in float32
        return [{parameter.dtype for parameter in stage.denoiser.parameters()} for stage in stages]

    assert widths(None) == widths("fp32") == [{torch.float32}] * 2
    assert widths("bf16") == [{torch.float32, torch.bfloat16}] * 2
    with pytest.raises(UserError, match="precision=fp16 must be bf16, fp32 or null"):
        draw(exports, tmp_path, 'prompts=["a"]', "precision=fp16")


def test_compile_reaches_every_network(exports, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda network, **options: compiled.append(network))
    draw(exports, tmp_path, 'prompts=["a"]', "compile=true")
    assert len(compiled) == len(exports)


def test_inpainting_with_bare_keys_keeps_the_known_part_and_writes_down_how_it_was_done(exports, tmp_path):
    beside = Path(exports[0]).parent
    keys = [f"image={beside}/photo.png", f"mask={beside}/mask.png", "task.resample=1", "size=[32,48]"]
    folder = draw(exports, tmp_path, "task=inpaint", *keys, 'prompts=["a","b"]', 'negative_prompts=["c"]')
    listing = json.loads((folder / "samples.json").read_text())
    task = {"image": f"{beside}/photo.png", "mask": f"{beside}/mask.png", "resample": 1, "jump": 0.04}
    assert listing["task"] == {"_target_": "imagen.task.inpaint.Inpaint", **task}
    assert listing["size"] == [32, 48]
    rows = [(row["prompt"], row["negative_prompt"]) for row in listing["pictures"]]
    assert rows == [("a", "c"), ("b", "c")]
    with Image.open(folder / "000_0.png") as drawn:
        known = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)[..., :24]
    assert torch.equal(known, to_uint8(picture_at(picture(48, 32), 32, 48))[0, ..., :24])


@pytest.mark.parametrize(
    ("arguments", "prompt", "count"),
    [
        (["task=variations", "strength=0.5", "num_samples=3"], "", 3),
        (["task=image_to_image", "strength=0.5", 'prompts=["x"]'], "x", 1),
    ],
)
def test_a_picture_needs_no_prompt_and_strength_is_written_down(exports, tmp_path, arguments, prompt, count):
    folder = draw(exports, tmp_path, f"image={Path(exports[0]).parent}/photo.png", *arguments)
    listing = json.loads((folder / "samples.json").read_text())
    assert listing["task"]["strength"] == 0.5
    assert [row["prompt"] for row in listing["pictures"]] == [prompt] * count


def test_super_resolution_alone_has_the_slot_of_its_kind(exports, tmp_path):
    image = f"image={Path(exports[0]).parent}/photo.png"
    folder = draw(exports[1:], tmp_path, "task=upscale", image, "sr1.augmentation_level=0.0", "sr1.guidance.weight=1.5")
    with Image.open(folder / "000_0.png") as drawn:
        assert drawn.size == (32, 32)


def test_travel_writes_its_frames(exports, tmp_path):
    folder = draw(exports, tmp_path, "task=travel", "task.frames=3", 'prompts=["x"]')
    assert [path.name for path in sorted(folder.glob("0*.png"))] == ["000_0.png", "000_1.png", "000_2.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=inpaint", "image=PHOTO"], "mask is missing"),
        (["task=upscale"], "image is missing"),
        (["image=PHOTO"], "task=generate, which takes no image: .*image_to_image or inpaint or upscale or variations"),
        (
            ["task=image_to_image", "image=PHOTO", "mask=MASK"],
            "=image_to_image, which takes no mask: .*task=inpaint",
        ),
        (["task=inpaint", "image=PHOTO", "mask=MASK", "strength=0.3"], "task=inpaint, which takes no strength"),
        (["task=travel", "strength=0.6"], "strength=0.6 does not go with task=travel, .*image_to_image or variations"),
        (["task=image_to_image", "image=PHOTO", "strength=0.0"], "strength=0.0 must be above 0"),
        (["task=upscale", "image=PHOTO"], "leave it out"),
        (["size=33"], "multiples of 4"),
        (["prompts=[]"], "holds no prompt"),
        (["negative_prompts=blurry"], "negative_prompts='blurry' is neither a set"),
        (['prompts=["a","b","c"]', 'negative_prompts=["d","e"]'], "one for each of the 3 prompts"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence_and_leaves_nothing(exports, tmp_path, arguments, message):
    beside = Path(exports[0]).parent
    arguments = [a.replace("PHOTO", f"{beside}/photo.png").replace("MASK", f"{beside}/mask.png") for a in arguments]
    with pytest.raises(UserError, match=message):
        draw(exports, tmp_path / "out", *arguments)
    assert not list(tmp_path.glob("out/*"))
