# %% [markdown]
# # 3 · What the U-Net sees
#
# What you will see: a picture on its way through the network, and which words each part of it looks at.
#
# 1. The shapes at each level: down to few pixels with many channels, and up again.
# 2. The channels themselves, as pictures.
# 3. Attention maps: for each word, where in the picture it is read, at much noise and at little.
#
# All of it is caught by forward hooks on the modules as they run. A toy network trains here for half a minute;
# the hooks work as they are on any other stage.

# %%
import matplotlib.pyplot as plt
import torch

from imagen import build
from imagen.cli import compose
from imagen.data.pixels import to_float, to_uint8
from imagen.data.synthetic import draw
from imagen.network.attention import CrossAttention, SelfAttention
from imagen.network.unet import Layer
from imagen.randomness import generator_of, normal_from
from imagen.runs import read_weights
from imagen.schedule import diffuse
from imagen.training import train
from imagen.types import Conditioning

# %% [markdown]
# ## A network to look into
#
# The toy U-Net of notebook 2. As the paper has it, text comes in twice: pooled into one vector beside the noise level,
# and by attention, word by word. Here the first is left out, so that all must come by the second.

# %%
RECIPE = [
    "experiment=toy",
    "network.attention_resolutions=[16,8]",  # attention at the full size too
    "text_pooling=none",  # all text comes by attention, word by word
    "batch_size=16",
    "optimizer.lr=4e-3",
    "max_steps=260",
]
cfg = compose("train", [*RECIPE, "output_dir=outputs", "callback=[progress,checkpoint]"])
run = train(cfg)
stage = build.load_stage(read_weights(run.path), "toy")
network, encoder = stage.denoiser.network, build.build_encoder(cfg)
print(f"{sum(p.numel() for p in network.parameters()):,} weights")

# %% [markdown]
# What it is given: a noisy picture, the log-SNR, and the words.

# %%
CAPTION = "a red circle on a blue background"
WORDS = [*CAPTION.split(), "end"]

picture = to_float(torch.from_numpy(draw(CAPTION, 16)).permute(2, 0, 1))[None]
noise = normal_from([generator_of("notebook", 0)], (3, 16, 16))
text = encoder.encode([CAPTION])


@torch.no_grad()
def look(logsnr):
    """Run the network on the picture at one noise level; what it is given, and what it takes x0 to be."""
    level = torch.tensor([logsnr])
    x_t = diffuse(picture, noise, level)
    return x_t, stage.denoiser(x_t, level, Conditioning(text)).x0


# %% [markdown]
# ## Shapes
#
# A hook on every layer notes what comes out. A `Layer` is a residual block and, where there is one, the attention
# after it.

# %%
seen = {}


def keep(name):
    def hook(module, inputs, output):
        seen[name] = output

    return hook


layers = {name: module for name, module in network.named_modules() if isinstance(module, Layer)}
layers |= {"conv_in": network.conv_in, "conv_out": network.conv_out}
hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
look(0.0)
for hook in hooks:
    hook.remove()

for name, output in seen.items():
    attends = "attention" if getattr(layers[name], "attention", None) is not None else ""
    side = output.shape[-1]
    print(f"{name:12} {output.shape[1]:3} channels  {'█' * side:16} {side:2} x {side:2}  {attends}")

# %% [markdown]
# On the way down each output is kept, and on the way up concatenated: so detail need not pass through the narrow
# middle. The paper's 64 px network is the same with more of everything: 512 channels at 64 pixels to 2,048 at 8,
# three blocks a level, attention at 32, 16 and 8.
#
# ## Channels as pictures
#
# The first eight channels after the first, the middle and the last layer. The first are filters of what is given. In
# the middle, at 8 x 8 places, shape and ground are apart. The last are noisy again: this network predicts `v`, a
# mixture of picture and noise, so both must be there.

# %%
shown = {"conv_in": "first", "middle.0": "middle", list(seen)[-2]: "last"}
figure, panels = plt.subplots(len(shown), 8, figsize=(12, 4.8), layout="constrained")
for row, (name, title) in zip(panels, shown.items(), strict=True):
    for panel, channel in zip(row, seen[name][0], strict=False):
        panel.imshow(channel, cmap="RdBu", vmin=-channel.abs().max(), vmax=channel.abs().max())
        panel.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{title}\n{name}", fontsize=9)
plt.show()

# %% [markdown]
# ## Attention
#
# In an attention layer every place of the picture asks a *query*; the picture's places and the words answer with
# *keys*. The softmax of their products says how much of each one's *value* a place takes. Only the result leaves
# the layer, so we catch queries and keys on their way, and make the weights from them once more.

# %%
caught = {}


def watch(name, attention):
    """Keep what goes into the softmax of an attention layer, and what its weights made of the values."""
    mine = caught[name] = {}
    attention.q_norm.register_forward_hook(lambda module, inputs, output: mine.update(q=output))
    attention.text.register_forward_hook(lambda module, inputs, output: mine.update(k=output[0], v=output[1]))
    attention.out.register_forward_pre_hook(lambda module, inputs: mine.update(result=inputs[0]))


def attention_weights(q, k, v, result):
    """Of each head and place the share of every key: [batch, heads, places, keys]; the words are the last keys."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=3)
    # what the layer itself went on with, so that these are its own weights
    torch.testing.assert_close((weights @ v).transpose(1, 2).flatten(2), result)
    return weights


for name, module in network.named_modules():
    if isinstance(module, SelfAttention | CrossAttention):
        watch(name, module)

look(0.0)
maps = {name: attention_weights(**parts) for name, parts in caught.items()}
for name, weights in maps.items():
    side = round(weights.shape[2] ** 0.5)
    share = weights[..., -len(WORDS) :].sum(3).mean()
    print(f"{name:20} {weights.shape[1]} head(s), {side:2} x {side:2} places, {share:4.0%} of it on words")

figure, panel = plt.subplots(figsize=(8, 3.2), layout="constrained")
shares = [weights[..., -len(WORDS) :].mean((0, 1, 2)) for weights in maps.values()]
figure.colorbar(panel.imshow(shares, cmap="magma", aspect="auto"))
panel.set_xticks(range(len(WORDS)), WORDS)
panel.set_yticks(range(len(maps)), list(maps))
panel.set_title("mean share of each word, layer by layer")
plt.show()

# %% [markdown]
# ## Where each word is read
#
# One map a word, of the layer that looks at words most, summed over its heads; bright where the word is read.
# Left of them is what the network was given and what it makes of it.

# %%
SHOWN = [-4.0, -1.0, 2.0, 5.0]  # log-SNRs


def word_maps(name):
    """Of one layer, how much each place reads each word: [words, side, side]."""
    on_words = attention_weights(**caught[name])[0].sum(0)[:, -len(WORDS) :]
    side = round(len(on_words) ** 0.5)
    return on_words.T.reshape(len(WORDS), side, side)


def draw_maps(name, levels):
    figure, panels = plt.subplots(len(levels), 2 + len(WORDS), figsize=(14, 1.65 * len(levels)), layout="constrained")
    for row, level in zip(panels, levels, strict=True):
        pair = look(level)
        for panel, image, title in zip(row, pair, ("given", "its guess"), strict=False):
            panel.imshow(to_uint8(image[0]).permute(1, 2, 0))
            panel.set_title(title, fontsize=9)
        of_words = word_maps(name)
        for panel, word, word_map in zip(row[2:], WORDS, of_words, strict=True):
            panel.imshow(word_map, cmap="magma", vmin=0, vmax=of_words.max())
            panel.set_title(word, fontsize=9)
        row[0].set_ylabel(f"log-SNR {level:+.0f}", fontsize=9)
        for panel in row:
            panel.set(xticks=[], yticks=[])
    figure.suptitle(name, fontsize=10)


fine = [name for name, weights in maps.items() if weights.shape[2] == 256]
chosen = max(fine, key=lambda name: maps[name][..., -len(WORDS) :].sum())
draw_maps(chosen, SHOWN)
plt.show()

# %% [markdown]
# A word is read where it belongs: the colour of the ground outside the outline, that of the shape within. Each layer
# has taken up words of its own, as the table above says, so look at the others too. At log-SNR −4 there is no outline
# yet; the word is read nearly everywhere, and the maps follow the blurred guess. And near the clean end the words that
# mean nothing are read as well, since by then it hardly matters what is read.
#
# A map says where a word is *read*, which is less than what it *does*: its value may be of no use to the next
# layer. The proof of the latter is to take the word away.

# %%
figure, panels = plt.subplots(1, 1 + len(WORDS), figsize=(14, 2), layout="constrained")
level = torch.tensor([-2.0])
x_t = diffuse(picture, noise, level)
with torch.no_grad():
    whole = stage.denoiser(x_t, level, Conditioning(text)).x0
    for i, word in enumerate([None, *WORDS]):
        some = encoder.encode([CAPTION])
        if word is not None:
            some.mask[0, i - 1] = False  # as if it were padding
        guess = stage.denoiser(x_t, level, Conditioning(some)).x0
        changed = (guess - whole).abs().mean().item()
        panels[i].imshow(to_uint8(guess[0]).permute(1, 2, 0))
        panels[i].set_title("all words" if word is None else f"without {word}\nchanges {changed:.2f}", fontsize=9)
        panels[i].set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## To try next
#
# - Other captions: `CAPTION = "a green cross on a white background"`. And one that swaps the colours: which words
#   change their maps?
# - `draw_maps(name, ...)` for the other layers, those of 8 pixels among them.
# - Put the pooled text back (leave out `text_pooling=none`): how much attention is left on the words?
# - A network of your own: `read_weights("outputs/demo_base16/<run>")` and its `build_encoder`. The words are then
#   tokens: `encoder.tokenize([CAPTION])`.
# - Next: [4, sampling step by step](4_sampling_step_by_step.ipynb).
