"""The page that raters see: one HTML file beside its pictures, which asks for nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from imagen.human_eval.ratings import FORMAT
from imagen.human_eval.trials import Trial


def page(study: str, trials: Sequence[Trial], kinds: Sequence[str]) -> str:
    """The HTML. Captions reach it as JSON in a script that is not run, and the document as text alone.

    Its content security policy allows this style, this script and pictures, and no network.
    """
    web = files("imagen.human_eval") / "web"
    style, script = ((web / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    shown = {"format": FORMAT, "study": study, "kinds": list(kinds), "trials": [asdict(trial) for trial in trials]}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (web / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        shown=shown, style=style, script=script, style_hash=_source_hash(style), script_hash=_source_hash(script)
    )


def _source_hash(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
