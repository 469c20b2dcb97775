"""Plan a training run: python -m imagen.plan [experiment=imagen_base64] [gpu=h100] [gpus=[8,64]] [utilisation=0.45].

Without an experiment, the paper's three stages. The keys of conf/plan.yaml are what is assumed; all others are those of
train.py, and recompute=full plans that alone. --markdown prints Markdown, --write puts it into docs/scaling.md, between
the marks there. Nothing is built: networks are counted on the meta device, in half a minute.
"""

import re
import sys

from omegaconf import DictConfig

from imagen.cli import CONF, among, compose, declared_keys, one_sentence, unknown_key
from imagen.config_check import read_yaml
from imagen.data.tokens import check_storage
from imagen.errors import UserError
from imagen.files import atomic_write
from imagen.plan import page
from imagen.plan.counts import count
from imagen.plan.estimate import GPUS, WAYS, describe
from imagen.plan.measured import utilisation

PAPER = ("imagen_base64", "imagen_sr256", "imagen_sr1024")
SCALING = CONF.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- begin of python -m imagen.plan --write -->", "<!-- end -->"
OPTIONS = ("--markdown", "--write", "--help", "-h")


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """A command line's words: those that set what is assumed, and those of train.py.

    Raises: UserError if one sets neither.
    """
    own, others = set(read_yaml(CONF / "plan.yaml")), declared_keys(CONF / "train.yaml")
    for word in words:
        if "=" in word and _key(word) not in own | others:
            raise UserError(unknown_key(_key(word), sorted(own | others)))
    mine = [word for word in words if _key(word) in own]
    return mine, [word for word in words if word not in mine]


def _key(word: str) -> str:
    return re.split(r"[.@=]", word.lstrip("+~"), maxsplit=1)[0]


def assume(words: list[str]) -> DictConfig:
    """What conf/plan.yaml assumes, changed by a command line's words.

    Raises: UserError if it cannot be computed with.
    """
    assumed = compose("plan", words)
    if isinstance(assumed.utilisation, str):
        raise UserError(f"utilisation={assumed.utilisation} must be a number or null")
    if assumed.gpu not in (*GPUS, "all"):
        raise UserError(f"gpu={assumed.gpu} is not known: {among(assumed.gpu, [*GPUS, 'all'])}")
    if not assumed.gpus or min(assumed.gpus) < 1:
        raise UserError(f"gpus={assumed.gpus} must be numbers of GPUs, each at least 1")
    targets = {f"targets.{name}": share for name, share in assumed.targets.items()}
    for key, value in {**assumed, **targets}.items():
        if isinstance(value, int | float) and value <= 0:
            raise UserError(f"{key}={value} must be more than 0")
    check_storage(assumed.storage)
    shares = {key: assumed[key] for key in ("utilisation", "memory_share", "bandwidth_share")}
    for key, share in {**shares, **targets}.items():
        if share is not None and share > 1:
            raise UserError(f"{key}={share} must be at most 1: it is a share")
    return assumed


def plan(assumed: DictConfig, words: list[str], *, markdown: bool) -> str:
    """The plan of the training runs that train.py's words name.

    Raises: UserError if one of them is wrong, or a batch has fewer pictures than there are GPUs.
    """
    named = {_key(word): word.partition("=")[2] for word in words}
    wanted = [[]] if "experiment" in named else [[f"experiment={name}"] for name in PAPER]
    draw = page.as_markdown if markdown else page.in_columns
    runs, parts = [], []
    for experiment in wanted:
        cfg = compose("train", [*experiment, *words])
        ways = [way for way in WAYS if named.get("recompute", way.recompute) == way.recompute]
        runs.append(describe(cfg, count(cfg), assumed))
        shares = {gpu: utilisation(cfg.name, GPUS[gpu].name, assumed) for gpu in GPUS if assumed.gpu in (gpu, "all")}
        text = page.stage(runs[-1], ways, shares, assumed, draw)
        parts += [f"### {cfg.name}" if markdown else f"\n== {cfg.name}", text]
    for title, text in (
        ("Storage", page.storage(runs, assumed, draw)),
        ("Assumptions", page.assumptions(assumed, draw)),
    ):
        parts += [f"### {title}" if markdown else f"\n== {title}", text]
    return "\n\n".join(parts)


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
    with one_sentence("plan"):
        if unknown := sorted(options - set(OPTIONS)):
            raise UserError(f"{unknown[0]} is not an option: {among(unknown[0], OPTIONS[:-1])}")
        if options & {"--help", "-h"}:
            print(f"{__doc__}\n{(CONF / 'plan.yaml').read_text(encoding='utf-8')}")
            return
        mine, others = split(words)
        assumed = assume(mine)
    with one_sentence("train"):
        text = plan(assumed, others, markdown=bool(options))
        if "--write" in options:
            write(text)
        else:
            print(text)


if __name__ == "__main__":
    main()
