"""``data_prep/filter.py``: the three phases in turn, each over this worker's share of the shards."""

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from imagen.build import instantiate
from imagen.cli import CONF
from imagen.data.shards import whole_shards
from imagen.data.writer import remove_surplus
from imagen.errors import UserError
from imagen.files import locate, make_folder, names_in
from imagen.prep.filter.duplicates import Limits, verdicts
from imagen.prep.filter.look import Look, digest
from imagen.prep.filter.report import told, write_report
from imagen.prep.filter.rules import Rules, read_blocklist
from imagen.prep.filter.write import Part, Write
from imagen.prep.gather import gather, gather_done
from imagen.prep.work import Workers

FORMAT = 1  # raise it when what is written changes: every shard is then written anew

_PLACES = ("input", "output", "num_workers", "worker_index", "worker_count")

Item = TypeVar("Item")
State = TypeVar("State")


def filter_set(cfg: DictConfig) -> None:
    """Filter every whole shard of ``cfg.input`` into ``cfg.output``, as far as one worker can.

    Raises: UserError where no safety is picked, a folder cannot serve, or a setting is out of its range.
    """
    rules, limits = _rules(cfg), _limits(cfg)
    workers = Workers(cfg.num_workers, cfg.worker_index, cfg.worker_count)
    folder, output = locate(cfg.input), make_folder(cfg.output, "output")
    if folder == output:
        raise UserError(f"output={output} is the input too: give another folder")
    names = [tar.name.removesuffix(".tar") for tar in whole_shards(folder, skip_unfinished=True)]

    look = Look(folder, output / "reports" / "filter", rules, digest(rules.recipe()))
    _, marks = _phase(workers, look, {name: name for name in names}, look.mark, "looking")
    if marks is None:
        return
    if workers.worker_index == 0:
        remove_surplus(output, [f"{name}.tar" for name in names], "filter")
    parts = {}
    for name, verdict in verdicts(look.reports, marks, limits).items():
        recipe = {"script": "filter", "format": FORMAT, "quality": cfg.quality, "source": marks[name].source}
        recipe |= {"seen": marks[name].content, "verdicts": hashlib.sha256(verdict.tobytes()).hexdigest()[:16]}
        parts[name] = Part(name, verdict.tobytes(), recipe)
    write = Write(folder, look.reports, output, len(names), cfg.quality)
    written, stats = _phase(workers, write, parts, lambda name: write.stats(parts[name]), "writing")
    print(f"{output}: shards written now: {written}, there already: {len(workers.share(names)) - written}")
    if stats is None:
        return
    tars = {name for name in names_in(folder) if name.endswith(".tar")}
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    about = {
        "unfinished": sorted(tars - {f"{name}.tar" for name in names}),
        "config": {key: value for key, value in config.items() if key not in _PLACES},
        "versions": {name: version(name) for name in ("imagen-lab", "pillow", "imagehash")},
    }
    print(told(write_report(folder, output, stats, about, rules.safety), output))


def _rules(cfg: DictConfig) -> Rules:
    if cfg.get("safety") is None:
        options = ", ".join(sorted(path.stem for path in (CONF / "safety").glob("*.yaml")))
        raise UserError(
            f"safety= has no default: pick the score by which your pictures count as safe ({options}), e.g. "
            "safety=punsafe safety.threshold=0.1 for LAION's, or safety=none to keep them all"
        )
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    built = {"safety": instantiate(cfg.safety), "blocklist": read_blocklist(cfg.blocklist)}
    return Rules(**{name: config[name] for name in Rules.__dataclass_fields__} | built)


def _limits(cfg: DictConfig) -> Limits:
    return Limits(distance=cfg.duplicate_distance, colour=cfg.duplicate_colour, repeats=cfg.max_caption_repeats)


def _phase(
    workers: Workers,
    task: Callable[[Item], None],
    work: Mapping[str, Item],
    state: Callable[[str], State | None],
    what: str,
) -> tuple[int, dict[str, State] | None]:
    """``task`` of what is not done of this worker's share: of how many; then the ``state`` of all, or None where others
    are behind.

    ``state`` of a shard is None until its work is done, by whomever.
    """
    share = workers.share(list(work))
    todo = [work[name] for name, done in zip(share, gather(state, share), strict=True) if done is None]
    for _ in workers.map(task, todo, what=what):
        pass
    states = gather_done(state, list(work))
    return len(todo), None if states is None else dict(zip(work, states, strict=True))
