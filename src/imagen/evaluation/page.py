"""The sheet: the same prompts and seeds at every point, side by side, in one HTML page beside its pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from imagen.evaluation.gallery import Gallery
from imagen.files import atomic_write

MOST = 64
"""Prompts that are shown."""

ARROWS = {"higher": "↑", "lower": "↓"}
"""Which way a figure is better."""

PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { margin: 2rem auto; max-width: 1400px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; }
img { width: 128px; image-rendering: pixelated; display: block; margin-bottom: .2rem; }
img.curve { width: 640px; max-width: 100%; image-rendering: auto; }
h1, p { overflow-wrap: anywhere; }
</style>
<h1>{{ title }}</h1>
<p>{{ rows[0].drawn }} pictures a point, seed {{ rows[0].seed }}, measured against {{ rows[0].real }} real ones.</p>
<div class="wide"><table>
<tr><th>point</th>{% for name in figures %}<th>{{ name }} {{ arrows.get(name, '') }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><th>{{ row.name }}</th>
{% for name in figures %}{% set value = row.metrics.get(name) %}
<td class="figure" title="n = {{ row.n.get(name, 0) }}">{{ "%.4g" % value if value is not none }}</td>
{% endfor %}</tr>{% endfor %}
</table></div>
{% for name in by_prompt %}
<h2>{{ name }} by kind of prompt</h2>
<div class="wide"><table>
<tr><th>point</th>{% for kind in kinds %}<th>{{ kind }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><th>{{ row.name }}</th>
{% for kind in kinds %}{% set one = row.kinds.get(kind, {}).get(name, {"n": 0}) %}
<td class="figure" title="n = {{ one.n }}">{{ "%.4g" % one.value if one.n }}</td>
{% endfor %}</tr>{% endfor %}
</table></div>
{% endfor %}
{% for row in rows %}{% for name, why in row.skipped.items() %}<p>{{ row.name }}: no {{ name }}, since {{ why }}</p>
{% endfor %}{% endfor %}
<details><summary>How each figure was made</summary><div class="wide"><table>
<tr><th>point</th><th>metric</th><th>with</th></tr>
{% for row in rows %}{% for name, known in row.provenance.items() %}<tr><td>{{ row.name }}</td><td>{{ name }}</td><td>
{%- for key, said in known.items() %}{{ key }} {{ said }}{{ "; " if not loop.last }}{% endfor %}</td></tr>
{% endfor %}<tr><td>{{ row.name }}</td><td>sampling</td><td>
{%- for slot, said in row.sampling.items() %}{{ slot }}:{% for key, value in said.items() if value is not none %} \
{{ key }} {{ value }}{{ "," if not loop.last }}{% endfor %}. {% endfor %}seed {{ row.seed }}</td></tr>
{% endfor %}
</table></div></details>
{% if curve %}<p><img class="curve" src="curve.png" alt="the points' figures against each other"></p>{% endif %}
<h2>The same prompts and seeds</h2>
<div class="wide"><table>
<tr><th>prompt</th>{% for row in rows %}<th>{{ row.name }}</th>{% endfor %}</tr>
{% for prompt, cells in shown %}<tr><td>{{ prompt }}</td>{% for files in cells %}<td>
{% for file in files %}<img src="{{ file }}" alt="{{ prompt }}" loading="lazy">{% endfor %}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
</html>
"""


def write_page(rows: Sequence[dict[str, Any]], galleries: Sequence[Gallery], path: Path) -> None:
    """Write the sheet of the points' galleries, their pictures linked where they lie."""
    pictures = [gallery.pictures(gallery.sides[-1]) for gallery in galleries]
    each = galleries[0].num_samples
    shown = [
        (
            prompt,
            [
                [os.path.relpath(file, path.parent) for file in one.files[p * each : (p + 1) * each][:4]]
                for one in pictures
            ],
        )
        for p, prompt in enumerate(galleries[0].prompts[:MOST])
    ]
    page = Environment(autoescape=True).from_string(PAGE)
    content = page.render(
        title=path.parent.name,
        rows=rows,
        figures=list(dict.fromkeys(name for row in rows for name in row["metrics"])),
        arrows={name: ARROWS[way] for row in rows for name, way in row["directions"].items()},
        kinds=list(dict.fromkeys(kind for row in rows for kind in row["kinds"])),
        by_prompt=list(dict.fromkeys(name for row in rows for own in row["kinds"].values() for name in own)),
        curve=(path.parent / "curve.png").is_file(),
        shown=shown,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
