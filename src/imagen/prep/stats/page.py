"""The page: one HTML file that needs no other, readable in light and in dark."""

import base64
import html
import io
from dataclasses import dataclass

from PIL import Image

from imagen.prep.stats.counts import EDGES, Counts

UNITS = {"characters": "caption, characters", "words": "caption, words", "aspect": "width : height"}
CELL = 176  # pixels of a picture's long side on the sheet
LONGEST = 160  # characters of a caption that are shown

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2328, #e7e9ea); --faint: light-dark(#5c6770, #98a2aa);
  --paper: light-dark(#fbfbfa, #15181b); --card: light-dark(#fff, #1d2125); --line: light-dark(#e3e5e6, #30363b);
  --bar: light-dark(#3f7fb5, #5b9bd0); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: .95rem; margin: 0 0 .1rem; } p { margin: .2rem 0 1rem; color: var(--faint); }
table { border-collapse: collapse; width: 100%; } .scroll { overflow-x: auto; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
th, small { color: var(--faint); font-weight: 500; } .n { text-align: right; font-variant-numeric: tabular-nums; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; }
.card p { font-size: .85rem; margin-bottom: .6rem; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .1rem .6rem; font-size: .82rem;
  font-variant-numeric: tabular-nums; align-items: center; }
.bars span:nth-child(3n+1) { text-align: right; color: var(--faint); } .bars span:nth-child(3n) { text-align: right; }
.bar { background: var(--bar); height: .8rem; border-radius: 0 3px 3px 0; min-width: 1px; }
.sheet { display: grid; gap: 1rem .9rem; grid-template-columns: repeat(auto-fill, minmax(176px, 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
figure img, .none { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; } .none { display: grid; place-items: center; padding: 1rem;
  color: var(--faint); font-size: .8rem; text-align: center; }
"""


@dataclass(frozen=True)
class Shown:
    """One picture of the sheet; ``picture`` is None where it cannot be decoded, and ``caption`` says what it is of."""

    picture: Image.Image | None
    caption: str
    key: str


@dataclass(frozen=True)
class Section:
    """What is told of one folder of pictures."""

    title: str
    counts: Counts
    sheet: list[Shown]


def page(title: str, folders: dict[str, Counts], sections: list[Section]) -> str:
    """The whole page: a table of all folders, then histograms and a sheet of each section."""
    body = [f"<h1>{_text(title)}</h1>", _table(folders)]
    for section in sections:
        counts = section.counts
        body += [f"<h2>{_text(section.title)}</h2>", f"<p>{_summary(counts)}</p>"]
        body += [_reasons(counts)] if counts.reasons else []
        body += ['<div class="cards">', *(_histogram(name, counts) for name in EDGES if counts.values[name]), "</div>"]
        body += [f"<h2>Pictures of {_text(section.title)}</h2>", f"<p>{len(section.sheet)}, evenly over all shards</p>"]
        body += ['<div class="sheet">', *map(_figure, section.sheet), "</div>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
    joined = "\n".join(body)
    opening = f'<!doctype html>\n<html lang="en"><head>{head}\n<style>{STYLE}</style></head>'
    return f"{opening}\n<body>\n{joined}\n</body></html>\n"


def size_in_words(count: int) -> str:
    """Bytes in the unit that suits them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def _text(text: str) -> str:
    """Safe in HTML; control characters, which no page may hold, become their replacement mark."""
    shown = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return html.escape(shown)


def _table(folders: dict[str, Counts]) -> str:
    head = '<tr><th>folder</th><th class="n">shards</th><th class="n">samples</th><th class="n">size</th>'
    rows = []
    for name, counts in folders.items():
        numbers = (f"{counts.shards:,}", f"{counts.pictures:,}", size_in_words(counts.bytes), _each(counts))
        cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
        rows.append(f"<tr><td>{_text(name)}{_notes(counts)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{head}<th class="n">a sample</th></tr>{"".join(rows)}</table></div>'


def _notes(counts: Counts) -> str:
    return "".join(f"<br><small>{count:,} {_text(note)}</small>" for note, count in counts.notes.items())


def _each(counts: Counts) -> str:
    return size_in_words(counts.bytes // counts.pictures) if counts.pictures else "-"


def _summary(counts: Counts) -> str:
    told = [f"{counts.pictures:,} pictures in {counts.shards:,} tars, {size_in_words(counts.bytes)}"]
    empty = counts.values["characters"][0]
    told += [f"{empty:,} captions are empty"] if empty else []
    return _text(". ".join(told))


def _reasons(counts: Counts) -> str:
    rows = [
        f'<tr><td>{_text(reason)}</td><td class="n">{n:,}</td></tr>' for reason, n in counts.reasons.most_common(12)
    ]
    head = '<tr><th>left out</th><th class="n">samples</th></tr>'
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div><br>'


def _histogram(name: str, counts: Counts) -> str:
    """Horizontal bars; empty bins at both ends are left out."""
    bins = counts.histogram(name)
    filled = [i for i, count in enumerate(bins) if count]
    total, most = sum(bins), max(bins)
    rows = []
    for i in range(filled[0], filled[-1] + 1):
        share = bins[i] / total
        label = f"{bins[i]:,} · {share:.1%}" if bins[i] else "0"
        width = f'<span><div class="bar" style="width:{100 * bins[i] / most:.1f}%"></div></span>'
        rows.append(f"<span>{_bin(name, i)}</span>{width if bins[i] else '<span></span>'}<span>{label}</span>")
    quantiles = [_number(counts.quantile(name, share) or 0) for share in (0.5, 0.05, 0.95)]
    told = f"median {quantiles[0]}, 90 % between {quantiles[1]} and {quantiles[2]}"
    title = UNITS.get(name, f"{name}, pixels")
    return f'<div class="card"><h3>{title}</h3><p>{told}</p><div class="bars">{"".join(rows)}</div></div>'


def _bin(name: str, i: int) -> str:
    edges = EDGES[name]
    if i + 1 == len(edges):
        return f"≥ {_number(edges[i])}"
    if name == "aspect":
        return f"{_number(edges[i])} – {_number(edges[i + 1])}" if i else f"&lt; {_number(edges[1])}"
    last = int(edges[i + 1]) - 1
    return _number(edges[i]) if last == edges[i] else f"{_number(edges[i])} – {last:,}"


def _number(value: int | float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}"


def _figure(shown: Shown) -> str:
    caption = shown.caption if len(shown.caption) <= LONGEST else f"{shown.caption[:LONGEST]}…"
    told = f'<figcaption dir="auto" title="{_text(shown.key)}">{_text(caption) or "<i>no caption</i>"}</figcaption>'
    if shown.picture is None:
        return f'<figure><div class="none">cannot be decoded</div>{told}</figure>'
    return f'<figure><img src="{_data_uri(shown.picture)}" alt="{_text(caption)}" loading="lazy">{told}</figure>'


def _data_uri(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((2 * CELL, 2 * CELL))  # twice, for screens of small pixels
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
