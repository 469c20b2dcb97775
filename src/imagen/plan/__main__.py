"""Plan a training run: python -m imagen.plan [experiment=imagen_base64] [gpu=h100] [gpus=[8,64]] [utilisation=0.45].

Without an experiment, the paper's three stages. The keys of conf/plan.yaml are what is assumed; all others are those of
train.py. --markdown prints Markdown, --write puts it into docs/scaling.md, between the marks there. Nothing is built:
networks are counted on the meta device, in half a minute.
"""

import sys

from omegaconf import DictConfig

from imagen.cli import CONF, compose, one_sentence
from imagen.config_check import read_yaml
from imagen.data.tokens import check_storage
from imagen.errors import UserError
from imagen.files import atomic_write
from imagen.plan import page
from imagen.plan.counts import count
from imagen.plan.estimate import GPUS, describe
from imagen.plan.measured import utilisation

PAPER = ("imagen_base64", "imagen_sr256", "imagen_sr1024")
SCALING = CONF.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- begin of python -m imagen.plan --write -->", "<!-- end -->"
OPTIONS = {"--markdown", "--write", "--help", "-h"}


def plan(words: list[str], *, markdown: bool) -> str:
    """The plan that a command line asks for.

    Raises: UserError if an assumption cannot be computed with, or a key of train.py's is wrong.
    """
    own = set(read_yaml(CONF / "plan.yaml"))
    mine = [word for word in words if word.split("=")[0] in own]
    others = [word for word in words if word not in mine]
    assumed = compose("plan", mine)
    _check(assumed)
    wanted = [[]] if any(word.startswith("experiment=") for word in others) else [[f"experiment={n}"] for n in PAPER]
    draw = page.as_markdown if markdown else page.in_columns
    runs, parts = [], []
    for experiment in wanted:
        cfg = compose("train", [*experiment, *others])
        runs.append(describe(cfg, count(cfg), assumed))
        shares = {gpu: utilisation(cfg.name, GPUS[gpu].name, assumed) for gpu in GPUS if assumed.gpu in (gpu, "all")}
        parts += [f"### {cfg.name}" if markdown else f"\n== {cfg.name}", page.stage(runs[-1], shares, assumed, draw)]
    for title, text in (
        ("Storage", page.storage(runs, assumed, draw)),
        ("Assumptions", page.assumptions(assumed, draw)),
    ):
        parts += [f"### {title}" if markdown else f"\n== {title}", text]
    return "\n\n".join(parts)


def _check(assumed: DictConfig) -> None:
    if isinstance(assumed.utilisation, str):
        raise UserError(f"utilisation={assumed.utilisation} must be a number or null")
    if assumed.gpu not in (*GPUS, "all"):
        raise UserError(f"gpu={assumed.gpu} is not known: give one of {', '.join(GPUS)}, or all")
    for key, value in assumed.items():
        if isinstance(value, int | float) and value <= 0:
            raise UserError(f"{key}={value} must be more than 0")
    check_storage(assumed.storage)
    for key in ("utilisation", "memory_share", "bandwidth_share"):
        if assumed[key] is not None and assumed[key] > 1:
            raise UserError(f"{key}={assumed[key]} must be at most 1: it is a share")


def write(text: str) -> None:
    """Put the plan between the marks of docs/scaling.md."""
    before, _, rest = SCALING.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    with atomic_write(SCALING) as file:
        file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Print the plan, or write it."""
    options = {word for word in sys.argv[1:] if word.startswith("-")}
    words = [word for word in sys.argv[1:] if word not in options]
    with one_sentence("train"):
        if unknown := sorted(options - OPTIONS):
            raise UserError(f"{unknown[0]} is not an option: there are --markdown, --write and --help")
        if options & {"--help", "-h"}:
            print(f"{__doc__}\n{(CONF / 'plan.yaml').read_text(encoding='utf-8')}")
            return
        text = plan(words, markdown=bool(options))
        if "--write" in options:
            write(text)
        else:
            print(text)


if __name__ == "__main__":
    main()
