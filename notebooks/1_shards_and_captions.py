# %% [markdown]
# # 1 · Shards and captions
#
# What you will see: how a folder of captioned pictures becomes what a training reads.
#
# 1. A folder of pictures, each with its caption in a text file beside it. One of them is broken, one has no
#    caption.
# 2. *Shards*: tar files of many samples. A disk or a bucket reads one large file far faster than many small ones.
# 3. *Sidecars*: the captions, encoded once by the frozen text encoder. The encoder of Imagen is larger than its
#    U-Net and never learns, so there is no reason to run it again at every step.
# 4. The batch in which picture and text meet again, joined by key.
#
# The three scripts are those of `data_prep/`, called from Python. Everything goes to `outputs/` beside this
# notebook.

# %%
import json
import tarfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from imagen import build
from imagen.cli import compose
from imagen.data.synthetic import CAPTIONS, draw
from imagen.prep.embed_text.command import embed_set
from imagen.prep.folder import pack_folder
from imagen.prep.pack.command import pack

OUTPUTS = Path("outputs")
PICTURES, CLEAN, SET = OUTPUTS / "pictures", OUTPUTS / "clean", OUTPUTS / "shapes"

# %% [markdown]
# ## A folder of pictures
#
# Coloured shapes of 64 pixels, drawn by the package itself: of 224 captions each has exactly one true picture.
# Any folder of yours will do as well: `cat.txt` beside `cat.jpg`, or one `metadata.csv`.

# %%
if not PICTURES.exists():
    PICTURES.mkdir(parents=True)
    for number, caption in enumerate(CAPTIONS):
        Image.fromarray(draw(caption, 64)).save(PICTURES / f"{number:03}.png")
        (PICTURES / f"{number:03}.txt").write_text(caption)

    (PICTURES / "broken.png").write_bytes((PICTURES / "000.png").read_bytes()[:100])  # a download that was cut off
    (PICTURES / "broken.txt").write_text("half a picture")
    Image.new("RGB", (64, 64)).save(PICTURES / "silent.png")  # no text file beside it

figure, panels = plt.subplots(2, 6, figsize=(12, 4.6), layout="constrained")
for panel, number in zip(panels.flat, range(0, 224, 19), strict=False):
    panel.imshow(Image.open(PICTURES / f"{number:03}.png"))
    panel.set_title((PICTURES / f"{number:03}.txt").read_text().replace(" on ", "\non "), fontsize=9)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## Into shards
#
# `folder.py` copies the bytes as they are into tars, 100 samples each here. What is unfit is left out and
# counted, never fatal: among millions of pictures from the web some are always broken.

# %%
pack_folder(compose("data_prep/folder", [f"input={PICTURES}", f"output={CLEAN}", "shard_size=100"]))

for tar in sorted(CLEAN.glob("*.tar")):
    stats = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text())
    print(tar.name, stats["status_dict"])

# %% [markdown]
# A sample is what shares a key: picture, caption, and a json with all that is known of it. The key says shard and
# place, so it is unique in the set.

# %%
with tarfile.open(CLEAN / "00000.tar") as tar:
    for member in tar.getmembers()[:6]:
        print(f"{member.name:16} {member.size:5} bytes")
    about = json.load(tar.extractfile(tar.getmembers()[0]))
print(json.dumps({name: about[name] for name in ("key", "caption", "width", "height", "sha256")}, indent=2))

# %% [markdown]
# ## Ready to train on: every size, two splits
#
# A cascade trains each stage at its own resolution, so `pack.py` writes each size into a folder of its own, with
# the same keys. The hash of a picture decides whether it is held out: so a picture that is in the set twice is
# never in both splits.

# %%
pack(compose("data_prep/pack", [f"input={CLEAN}", f"root={SET}", "sizes=[16,32]", "format=png", "validation=32"]))

for path in sorted(SET.rglob("*.tar")):
    print(f"{path.relative_to(SET)!s:32} {path.stat().st_size / 1000:6.1f} kB")

# %% [markdown]
# Beside each tar lies its index: key, place and length of every member. With it a loader reads any sample without
# reading those before it, which is how pictures are shuffled that do not fit into memory.

# %%
index = np.load(SET / "train/images-32/00000_index.npy")
row = index[42]
print("key", row["key"].decode(), "· picture at byte", row["picture"]["offset"], "·", row["picture"]["size"], "bytes")

with open(SET / "train/images-32/00000.tar", "rb") as file:
    file.seek(row["picture"]["offset"])
    Path(OUTPUTS / "one.png").write_bytes(file.read(row["picture"]["size"]))

figure, panel = plt.subplots(figsize=(2.4, 2.4))
panel.imshow(Image.open(OUTPUTS / "one.png"))
panel.set_title("read from the middle of a tar", fontsize=9)
panel.axis("off")
plt.show()

# %% [markdown]
# ## Captions as the network sees them
#
# A text encoder turns a caption into one vector a token. The paper's is T5-XXL, of 4.6 billion parameters. Here
# it is `hash`: every word has a fixed random vector, so that nothing need be downloaded, and one can see what
# there is to see.

# %%
embed_set(compose("data_prep/embed_text", [f"root={SET}", "text_encoder=hash"]))

print(*sorted({str(path.parent.relative_to(SET)) for path in SET.rglob("*.tar")}), sep="\n")

# %% [markdown]
# The eight letters and digits after `text-hash-` are a fingerprint of the encoder: a network trained with one
# encoder cannot be sampled with another by mistake. Captions of different lengths are padded to the longest of
# the batch, and a *mask* says what is real.

# %%
encoder = build.build_encoder(compose("train", ["experiment=toy"]))
said = ["a red circle on a blue background", "a blue circle on a red background", "a red circle"]
text = encoder.encode(said)
print("tokens [batch, token, width]", tuple(text.tokens.shape), " mask [batch, token]", tuple(text.mask.shape))

figure, panels = plt.subplots(1, 3, figsize=(12, 2.9), layout="constrained")
for panel, caption, tokens, mask in zip(panels, said, text.tokens, text.mask, strict=True):
    panel.imshow(tokens.where(mask[:, None], float("nan")), cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    words = [*caption.split(), "end"]
    panel.set_yticks(range(len(mask)), [*words, *["padding"] * (len(mask) - len(words))], fontsize=9)
    panel.set_title(caption, fontsize=10)
    panel.set_xlabel("width")
plt.show()

# %% [markdown]
# The first two captions have the same rows in another order: to tell them apart, a network needs to know which
# colour stands beside which noun. `hash` gives a word the same vector wherever it stands, so it cannot say so. A
# real encoder reads the sentence, and its vector of *red* knows of *circle*: the gap between the two is what
# `ablation=encoder_size` measures.

# %%
swapped = [said[1].split().index(word) for word in said[0].split()]
print("as sets of vectors, the two captions are equal:", bool((text.tokens[0][:7] == text.tokens[1][swapped]).all()))

# %% [markdown]
# ## A batch
#
# The loader joins pictures and sidecars by key, checks that the caption is still the one that was encoded, and
# pads. Pixels stay bytes until they are on the device.

# %%
cfg = compose("train", ["experiment=toy", "data=webdataset", f"data.root={SET}", "data.num_workers=0"])
data = build.build_data(cfg)
data.setup("fit")
batch = next(iter(data.train_dataloader()))
print("image", batch.image.dtype, tuple(batch.image.shape), " tokens", tuple(batch.text.tokens.shape))

figure, panels = plt.subplots(1, len(batch), figsize=(13, 2.3), layout="constrained")
for panel, picture, caption, key in zip(panels, batch.image, batch.caption, batch.key, strict=True):
    panel.imshow(picture.permute(1, 2, 0))
    panel.set_title(f"{key}\n" + caption.replace(" on ", "\non "), fontsize=8)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## To try next
#
# - Run the notebook again: nothing is written twice. Then change one text file in `outputs/pictures` and see
#   which shards are made anew.
# - `sizes=[16,32]` to `buckets=2`, and pictures that are not square ([docs/data.md](../docs/data.md)).
# - `text_encoder=minilm` in `embed_set`: 6 layers of a real encoder, which come with a package. Compare the
#   vectors of *red* in the first two captions.
# - Train on the set: `python train.py experiment=toy data=webdataset data.root=notebooks/outputs/shapes`.
# - Next: [2, noise, log-SNR and schedules](2_noise_and_schedules.ipynb).
