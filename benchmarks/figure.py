"""A bar a step, cut into kinds of operation by their share of its time, as SVG."""

from html import escape

COLOURS = {
    "convolution": "#4e79a7",
    "matmul": "#76b7b2",
    "attention": "#e15759",
    "norm": "#f28e2b",
    "pointwise": "#edc948",
    "copy and cast": "#bab0ac",
    "optimizer": "#b07aa1",
    "EMA": "#9c755f",
    "other": "#dddddd",
}
"""Of each kind, in the order in which they are drawn."""

LEFT, WIDTH, ROW, BAR = 360, 560, 24, 16  # pixels: the labels, a whole bar, from bar to bar, a bar's height


def bars(rows: dict[str, dict[str, float]]) -> str:
    """One bar a label, the largest parts told by their percentage; kinds that nothing has are not explained."""
    shown = [kind for kind in COLOURS if any(parts.get(kind) for parts in rows.values())]
    height = ROW * (len(rows) + 2)
    drawn = [_legend(shown)]
    for number, (label, parts) in enumerate(rows.items(), start=1):
        y, left, total = ROW * number + 8, float(LEFT), sum(parts.values())
        drawn.append(_text(LEFT - 8, y + 12, label, "end"))
        for kind in shown:
            width = WIDTH * parts.get(kind, 0.0) / total
            drawn.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[kind]}"/>')
            if width > 32:
                drawn.append(_text(left + width / 2, y + 12, f"{width / WIDTH:.0%}", "middle"))
            left += width
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}" font-size="11"'
    return (
        f'{head} font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _legend(kinds: list[str]) -> str:
    drawn, x = [], 12.0
    for kind in kinds:
        drawn.append(f'<rect x="{x:.1f}" y="8" width="12" height="12" fill="{COLOURS[kind]}"/>')
        drawn.append(_text(x + 16, 18, kind, "start"))
        x += 34 + 6.2 * len(kind)
    return "\n".join(drawn)


def _text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
