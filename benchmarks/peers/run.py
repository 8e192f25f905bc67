"""Run the comparison: check each peer's output, choose its number of workers, and time the peers alternately."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.benchmarks import noise, record
from penstock.benchmarks.measure import Sample, in_turn, ratio
from penstock.benchmarks.peers.check import Seen, marked_faults, pixel_faults
from penstock.benchmarks.peers.environments import how_to_install, python_of
from penstock.benchmarks.peers.images import Images, bytes_of, lay_out, lay_out_marked, make_once
from penstock.benchmarks.peers.process import Child, PeerError
from penstock.benchmarks.peers.registry import OURS, PEERS, PIXELS
from penstock.pipeline.config import DataConfig
from penstock.shards.format import ShardSet
from penstock.training import environment

ROOT = Path(__file__).resolve().parents[2]
EPOCH_BATCHES = 200  # least number of batches in an epoch; images are repeated to reach it
NUM_CHECKED = 2000  # images to check, both of the marked and of the timed ones
MARKED_BATCH, MARKED_WORKERS = 50, 4  # upper limits, so each worker gives several batches of the marked images
TURN_S = 2.0  # the most seconds to try a number of workers
PREPARE_LIMIT_S = 24 * 3600.0


@dataclass(frozen=True)
class Settings:
    """The settings of all programs.

    cores: the cores that a program's processes may use. workers: numbers of worker processes or threads to try. folder:
    for environments, the peers' copies of the images, and logs. seconds, repeats: of each program's turns.
    """

    image_size: int
    batch_size: int
    cores: tuple[int, ...]
    workers: tuple[int, ...]
    folder: Path
    seconds: float
    repeats: int


def compare(names: Sequence[str], dataset: ShardSet, settings: Settings, say: Callable[[str], None]) -> record.Result:
    """Compare the peers `names`. The first is ours, and the others are checked against it.

    Returns the result, with `skipped` and `failed` in `more`: peer → reason. say: called with a line about each program
    as it is ready.

    Raises PeerError if ours fails before it is timed.
    """
    images, marked = lay_out(dataset, settings.folder / "data"), lay_out_marked(settings.folder / "data")
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    children: list[Child] = []
    samples: dict[str, list[Sample]] = {}

    def leave_out(error: PeerError) -> None:
        outcome, found = ("skipped", skipped) if error.missing else ("FAILED", failed)
        found[error.peer] = f"{error}. {how_to_install(error.peer)}" if error.missing else str(error)
        say(f"{error.peer}: {outcome}: {found[error.peer]}")

    with ExitStack() as stack:
        for name in names:
            try:
                child = enter(name, images, marked, settings, children[0].seen if children else None)
                children.append(stack.enter_context(closing(child)))
                say(f"{name}: output is correct, fastest with {child.figures['workers']} worker(s)")
            except PeerError as error:
                if not children:
                    raise
                leave_out(error)
        with noise.watched() as warnings:
            while children and not samples:  # if one fails, the others start again, to alternate without it
                try:
                    samples = in_turn(children, settings.seconds, settings.repeats)
                except PeerError as error:
                    leave_out(error)
                    children = [child for child in children if child.name != error.peer]
        figures = {child.name: child.figures | {"memory_mb": child.memory_mb()} for child in children}
    rates = {name: [one.images_per_s for one in taken] for name, taken in samples.items()}
    ratios = {
        f"{ours} / {name}": ratio(rates[ours], rates[name])
        for ours in (OURS, PIXELS)
        for name in rates
        if ours in rates and name not in (OURS, ours)
    }
    about = {
        "data": str(dataset.root), "against": str(dataset.root), "split": images.split.name,
        "image_size": settings.image_size, "batch_size": settings.batch_size, "threads": len(settings.cores),
        "workers": list(settings.workers), "seconds": settings.seconds, "repeats": settings.repeats, "device": "cpu",
    }  # fmt: skip
    lines = [*warnings, *noise.spread_warnings(rates)]
    result = record.build("peers", about, samples, ratios, lines, figures)
    return replace(result, more={"skipped": skipped, "failed": failed})


def enter(name: str, images: Images, marked: Images, settings: Settings, ours: Sequence[Seen] | None) -> Child:
    """Prepare a peer's files, check its output, and start it with its fastest number of workers.

    ours: descriptions of our marked and timed images; None if this peer is ours.

    Raises PeerError if the peer is not installed, fails, or gives wrong output.
    """
    if not python_of(name, settings.folder).exists():
        raise PeerError(name, "its environment does not exist yet", missing=True)
    if PEERS[name].reads == "own":
        prepare(name, marked, settings)
        prepare(name, images, settings)
    with closing(start(name, marked, settings, min(MARKED_WORKERS, settings.workers[0]), MARKED_BATCH)) as child:
        child.answer()
        crops = child.describe(NUM_CHECKED)
    children: dict[int, Child] = {}
    rates: dict[int, float] = {}
    with ExitStack() as unless_right:
        for workers in settings.workers:
            children[workers] = child = unless_right.enter_context(closing(start(name, images, settings, workers)))
            first_batch_s, version = child.answer()
            child.figures = {
                "version": version or environment.penstock_version(),
                "workers": workers,
                "first_batch_s": first_batch_s,
            }
            rates[workers] = child.run(min(TURN_S, settings.seconds)).images_per_s
            best = children[max(rates, key=rates.__getitem__)]
            for slower in set(children.values()) - {best}:
                slower.close()
        best.seen = crops, best.describe(NUM_CHECKED)
        ours = ours or best.seen
        if faults := marked_faults(crops, ours[0]) or pixel_faults(best.seen[1], ours[1]):
            raise PeerError(name, f"its output is wrong: {'; '.join(faults)}")
        unless_right.pop_all()
    best.figures["images_per_s_of_workers"] = {str(workers): rate for workers, rate in rates.items()}
    files = {"folder": [images.folder], "shards": images.packed, "own": [own_files(name, images, settings)]}
    best.figures["size_bytes"] = bytes_of(files[PEERS[name].reads])
    return best


def own_files(name: str, images: Images, settings: Settings) -> Path:
    return settings.folder.absolute() / "data" / f"{name}-{images.key}"


def prepare(name: str, images: Images, settings: Settings) -> None:
    """Let a peer write files of its own, unless they exist."""

    def make(target: Path) -> None:
        with closing(start(name, images, settings, 1, prepare_in=target)) as child:
            child.answer(PREPARE_LIMIT_S)

    make_once(own_files(name, images, settings), make)


def start(
    name: str, images: Images, settings: Settings, workers: int, batch_size: int = 0, prepare_in: Path | None = None
) -> Child:
    """Start a peer's process. Its first answer comes with its first batch.

    batch_size: upper limit; 0 uses the settings'. prepare_in: the folder to write its files to, if it should only
    prepare them.
    """
    peer, config = PEERS[name], DataConfig()
    batch_size = min(batch_size or settings.batch_size, settings.batch_size)
    job = {
        "adapter": peer.adapter, "package": peer.package, "options": dict(peer.options), "root": str(ROOT),
        "folder": str(images.folder), "num_images": len(images.split), "dataset": str(images.split.root),
        "shards": [str(path) for path in images.packed if path.suffix == ".tar"],
        "indexes": [str(path) for path in images.packed if path.suffix == ".idx"],
        "prepare": prepare_in is not None, "prepared": str(prepare_in or own_files(name, images, settings)),
        "repeats": -(-EPOCH_BATCHES * batch_size // len(images.split)),
        "image_size": settings.image_size, "batch_size": batch_size, "workers": workers, "cores": settings.cores,
        "mean": list(config.mean), "std": list(config.std),
    }  # fmt: skip
    return Child(name, python_of(name, settings.folder), job, settings.folder / "logs" / f"{name}.txt")
