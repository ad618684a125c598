"""Table 2: safe exploration of a ResNet-18 on image sets, with the library's gates and with the paper's sampled ones.

``table2`` finds gates at the paper's width and at the smallest width. ``table2-gates`` samples q from the standard
normal distribution as the paper does, at the paper's width. ``table2-network`` proves the row of the network itself, in
real arithmetic, with BatchNorm at its initial statistics (mean 0, variance 1).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alignver import require
from alignver.checks.exploration import check_safe_exploration
from alignver.checks.exploration_report import forget_peak
from alignver.checks.recheck import recheck
from alignver.data.archives import Dataset
from alignver.data.image_sets import cifar10, cifar100, kmnist, mnist, svhn
from alignver.data.small_sets import semeion
from alignver.errors import InvalidInput, reading
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting
from alignver.experiments.networks import fix_statistics, resnet18
from alignver.kernel import Certificate
from alignver.network.enclosed_features import inputs_again
from alignver.network.feature_extraction import extract_features, save_features
from alignver.progress import stage
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_up, worst

__all__ = ["PAPER", "TABLE2", "TABLE2_GATES", "TABLE2_NETWORK", "Row", "data_folder", "features", "load", "table2"]

_BATCH = 250  # images in one forward pass
_STATISTICS = 2048  # images over which the BatchNorm statistics are averaged
FEATURES = 512
"""Number of features of the network, without the constant."""

_RECIPE = 1  # changes whenever the features would


@dataclasses.dataclass(frozen=True)
class Row:
    """The paper's row for a data set, and how to load it.

    Attributes
    ----------
    n, m, width : int
        Samples, m_{H-1} and m_H as printed.
    load : callable
        Loads the set from a folder.
    """

    n: int
    m: int
    width: int
    load: Callable[[Any], Dataset]


def _semeion_train(folder: Any) -> Dataset:
    """Draw the paper's 1000 training images with seed 0 (Appendix B.1 names no seed)."""
    digits = semeion()
    return digits.take(np.sort(np.random.default_rng(0).choice(len(digits), size=1000, replace=False)))


PAPER: Mapping[str, Row] = MappingProxyType(
    {
        "mnist": Row(60000, 513, 234, mnist),
        "cifar10": Row(50000, 513, 195, cifar10),
        "cifar100": Row(50000, 513, 195, cifar100),
        "semeion": Row(1000, 513, 4, _semeion_train),
        "kmnist": Row(60000, 513, 234, kmnist),
        "svhn": Row(73257, 513, 286, svhn),
    }
)
"""Table 2 as printed; 'Verified' in every row."""


def data_folder(given: str | os.PathLike[str] | None) -> pathlib.Path:
    """Return the folder of the image sets: the one given, or that of the environment variable ``ALIGNVER_DATA``."""
    place = given if given is not None else os.environ.get("ALIGNVER_DATA")
    if not place or not pathlib.Path(place).is_dir():
        got = "no folder" if not place else f"{os.fspath(place)!r}, which is not a folder"
        raise InvalidInput("data_folder", got, "the folder of the image sets (or ALIGNVER_DATA)", "unreadable-file")
    return pathlib.Path(place)


def features(data: Dataset, *, seed: int = 0, cache: str | os.PathLike[str] | None = None) -> npt.NDArray[np.float32]:
    """Return the 512 features of a freshly initialised ResNet-18 for every image, without the constant.

    Pixels are scaled to mean 0 and deviation 1 over the whole set, channel by channel. The network is PyTorch's default
    initialisation; its BatchNorm statistics are averaged over 2048 images drawn from the set, then fixed.

    Parameters
    ----------
    data : Dataset
    seed : int
        Of the initialisation and of the images for the statistics.
    cache : path, optional
        Folder that stores the features, in a file named by the hash of images, recipe and torch version. Features that
        it already holds are read.

    Returns
    -------
    (n, 512) float32
    """
    recipe = f"{data.sha256} resnet18 {_RECIPE} seed {seed} torch {torch.__version__} batch {_BATCH}"
    file = None
    if cache is not None:
        name = hashlib.sha256(recipe.encode()).hexdigest()[:24]
        file = pathlib.Path(cache) / f"features-{name}.npy"
        if file.is_file():
            with reading("cache", f"{file}, which cannot be read", "a file of features, or none"):
                Z: npt.NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)
            if Z.shape == (len(data), FEATURES) and Z.dtype == np.float32:
                return Z
    images = _images(data)
    channels, classes = int(images.shape[1]), int(data.y.max()) + 1
    model = resnet18(channels, classes, seed=seed)
    sample = np.random.default_rng(seed).choice(len(data), size=min(_STATISTICS, len(data)), replace=False)
    with stage("BatchNorm statistics"):
        fix_statistics(model, images[np.sort(sample)])
    if file is None:
        return extract_features(model, images, "features", batch_size=_BATCH).astype(np.float32, copy=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"{file.parent} ({error.strerror})"
        raise InvalidInput("cache", got, "a folder that can be written", "unwritable-file") from error
    try:
        return save_features(file, model, images, "features", batch_size=_BATCH)
    except InvalidInput as error:
        argument = "cache" if error.argument == "file" else error.argument
        raise InvalidInput(argument, error.got, error.need, error.code) from error


def _images(data: Dataset) -> torch.Tensor:
    """Return images (n, channels, height, width) in float32 with mean 0 and deviation 1 in each channel."""
    x = data.x if data.x.ndim == 4 else data.x[..., None]
    pixels = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32))
    size = float(x.max())
    pixels /= size
    wide = x.reshape(-1, x.shape[-1])
    mean, deviation = wide.mean(axis=0, dtype=np.float64) / size, wide.std(axis=0, dtype=np.float64) / size
    shape = (1, -1, 1, 1)
    pixels -= torch.tensor(mean, dtype=torch.float32).reshape(shape)
    pixels /= torch.tensor(np.where(deviation > 0, deviation, 1.0), dtype=torch.float32).reshape(shape)
    return pixels


def load(dataset: str, folder: str | os.PathLike[str] | None = None) -> tuple[Row, Dataset]:
    """Return the paper's row of a data set and the data themselves."""
    row = PAPER[require.one_of("dataset", dataset, PAPER)]
    return row, row.load(None if dataset == "semeion" else data_folder(folder))


def table2(
    dataset: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> tuple[Row, Dataset, dict[str, CheckResult]]:
    """Check Assumption 4 for one data set of Table 2.

    Parameters
    ----------
    dataset : str
        A key of :data:`PAPER`.
    folder : path, optional
        As :func:`data_folder` takes it; Semeion needs none.
    seed : int
        Of the network, the directions and the sampled gates.
    cache : path, optional
        As :func:`features` takes it.

    Returns
    -------
    (Row, Dataset, dict)
        The paper's row, the data, and the results at ``"smallest width"`` and ``"paper width"``.

    Raises
    ------
    InvalidInput
        The data set is unknown, or the folder or its files are missing.
    """
    row, data = load(dataset, folder)
    Z = features(data, seed=seed, cache=cache)
    width = -(-2 * len(data) // row.m)
    forget_peak()  # the network's features cost more
    results = {
        "smallest width": check_safe_exploration(Z, add_constant=True, seed=seed),
        "paper width": check_safe_exploration(Z, width=width, add_constant=True, seed=seed),
    }
    return row, data, results


def _parts(measure: Callable[[str, int, Setting], Mapping[str, Any]], setting: Setting, **recipe: Any) -> list[Part]:
    """Return a part for each data set and seed; Semeion alone unless others are selected."""
    return [
        Part(
            f"{name}, seed {seed}",
            {"dataset": name, "seed": seed, **recipe},
            functools.partial(measure, name, seed, setting),
        )
        for name in setting.select(tuple(PAPER), ["semeion"])
        for seed in range(setting.on_cpu().seeds or 1)
    ]


def _measure(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    _row, data, results = table2(name, setting.data_folder, seed=seed, cache=setting.cache)
    smallest, width = results["smallest width"], results["paper width"]
    ranks = {rule["rule"]: rule["rank"] for rule in width.measured.get("rules", ())}
    full = {rule: ranks.get(rule) == width.measured["samples"] for rule in ("press", "golub")}
    return {
        "data": data.name,
        "seed": seed,
        "n": width.measured["samples"],
        "m_{H-1}": width.measured["features"],
        "m_H": width.measured["width"],
        **full,
        "proof": width.rigor is Rigor.PROOF,
        "verdict": worst([smallest.verdict, width.verdict]).value,
        "rigor": width.rigor.value,
        "smallest proved width": smallest.measured.get("width"),
        "limit": -(-width.measured["samples"] // width.measured["features"]),
        "seconds": width.cost["seconds"],
        "smallest seconds": smallest.cost["seconds"],
        "peak_bytes": max((result.cost.get("peak_bytes", 0) for result in results.values()), default=0) or None,
        "sha256": data.sha256,
    }


def _parts_of_table2(setting: Setting) -> list[Part]:
    return _parts(_measure, setting, features=_RECIPE, widths=["smallest", "ceil(2n/m)"])


def _claims_of_table2(setting: Setting) -> list[Claim]:
    """Compare each row: Assumption 4 is verified at the paper's width."""
    claims = []
    for part in _parts_of_table2(setting):
        name = part.recipe["dataset"]
        row = PAPER[name]
        paper: dict[str, Any] = {
            "n": row.n,
            "m_{H-1}": row.m,
            "m_H": row.width,
            "press": True,
            "golub": True,
            "proof": False,
        }
        paper |= dict.fromkeys(("smallest proved width", "seconds", "peak memory"))  # the paper does not give these
        sentence = f"safe exploration holds for {name}"
        claims.append(Claim(f"{name}-seed-{part.recipe['seed']}", sentence, paper, [part.key], _verified))
    return claims


def _verified(runs: Measured) -> Answer:
    ((_, run),) = runs.items()
    peak, smallest = run["peak_bytes"], run["smallest proved width"]
    memory = None if peak is None else f"{peak / 1e9:.1f} GB"
    evidence = [f"width {run['m_H']}: {run['seconds']:.1f} s; width {smallest}: {run['smallest seconds']:.1f} s"]
    if memory is not None:
        evidence.append(f"{memory} at most while proving, images and torch included")
    return Answer(
        Verdict(run["verdict"]),
        f"{run['verdict']} with {run['rigor']} at width {run['m_H']}, and down to width {smallest} ({run['limit']} is "
        f"the limit); {run['data']}, seed {run['seed']}",
        {**run, "peak memory": memory},
        evidence,
        seconds=run["seconds"],
    )


TABLE2 = Item(
    "table2",
    "Safe exploration (Assumption 4) of a ResNet-18 on image sets",
    "Table 2",
    "seconds for Semeion; 15 minutes each for MNIST and CIFAR-10 on two cores, nearly all of it feature extraction",
    _parts_of_table2,
    _claims_of_table2,
    datasets=tuple(PAPER),
)


def _measure_gates(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    row, data = load(name, setting.data_folder)
    Z = features(data, seed=seed, cache=setting.cache)
    width = -(-2 * len(data) // row.m)
    result = check_safe_exploration(Z, width=width, method="gram", add_constant=True, seed=seed)
    return {
        "verdict": result.verdict.value,
        "rigor": result.rigor.value,
        "reason": result.reason,
        "seconds": result.cost["seconds"],
    }


def _parts_of_gates(setting: Setting) -> list[Part]:
    return _parts(_measure_gates, setting, width="ceil(2n/m)")


def _claims_of_gates(setting: Setting) -> list[Claim]:
    """Compare each row: the rank is n for the sampled q."""
    return [
        Claim(
            f"{part.recipe['dataset']}-seed-{part.recipe['seed']}",
            f"a sampled q has rank n for {part.recipe['dataset']}",
            "Verified",
            [part.key],
            _full_rank,
        )
        for part in _parts_of_gates(setting)
    ]


def _full_rank(runs: Measured) -> Answer:
    ((_, run),) = runs.items()
    verdict, reason = Verdict(run["verdict"]), f"{run['verdict']} with {run['rigor']}: {run['reason']}"
    return Answer(verdict, reason, run["verdict"], seconds=run["seconds"])


TABLE2_GATES = Item(
    "table2-gates",
    "Table 2 with the paper's own sampled gates",
    "Table 2 and section 3.4.2",
    "seconds for Semeion; for n = 60000 half an hour to an hour on two cores, and 15 GB",
    _parts_of_gates,
    _claims_of_gates,
    datasets=tuple(PAPER),
)


def _measure_network(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    row, data = load(name, setting.data_folder)
    images = _images(data)
    model = resnet18(int(images.shape[1]), int(data.y.max()) + 1, seed=seed)
    result = check_safe_exploration(model, X=images, layer="features", folder=setting.cache, seed=seed)
    run = {
        "data": data.name,
        "n": len(data),
        "m_{H-1}": row.m,
        "verdict": result.verdict.value,
        "rigor": result.rigor.value,
        "subject": result.subject.value,
        "reason": result.reason,
        "m_H": result.measured.get("width"),
        "limit": -(-len(data) // row.m),
        "seconds": result.cost.get("seconds", 0.0),
        "sha256": data.sha256,
    }
    certificate = result.certificate
    if result.subject is not Subject.NETWORK or not isinstance(certificate, Certificate):
        return run
    inputs, _ = inputs_again(certificate, model, images)
    again = recheck(certificate, **inputs)
    features = {f"features {key}": result.measured["network"][key] for key in ("delta", "apart", "seconds")}
    run |= features | {"rigor": again.rigor.value}  # features from a cache are proved by the re-check alone
    return run | {"re-check": again.verdict.value, "re-check seconds": again.cost.get("seconds")}


def _parts_of_network(setting: Setting) -> list[Part]:
    return _parts(_measure_network, setting, statistics="initial", width="smallest")


def _claims_of_network(setting: Setting) -> list[Claim]:
    """Compare each row: Assumption 4 is verified, at the paper's width or a smaller one."""
    claims = []
    for part in _parts_of_network(setting):
        name, seed = part.recipe["dataset"], part.recipe["seed"]
        row = PAPER[name]
        paper: dict[str, Any] = {"n": row.n, "m_{H-1}": row.m, "m_H": row.width}
        paper |= dict.fromkeys(("subject", "rigor", "features delta", "seconds", "re-check"))
        sentence = f"safe exploration holds for {name}, about the network"
        claims.append(Claim(f"{name}-seed-{seed}", sentence, paper, [part.key], _of_network))
    return claims


def _of_network(runs: Measured) -> Answer:
    ((_, run),) = runs.items()
    width, seconds = run["m_H"], run["seconds"]
    if "re-check" not in run:
        proved = run["verdict"] == "FAILS" and run["rigor"] == "PROOF"
        verdict = Verdict.FAILS if proved else Verdict.UNDECIDED
        return Answer(verdict, f"{run['verdict']} with {run['rigor']}: {run['reason']}", dict(run), seconds=seconds)
    agrees = run["re-check"] == "HOLDS" and width <= -(-2 * run["n"] // run["m_{H-1}"])
    reason = (
        f"HOLDS at width {width} ({run['limit']} is the limit), in real arithmetic: each row of the features is proved "
        f"within {shown_up(run['features delta'])}; {run['data']}, BatchNorm at its initial statistics"
    )
    evidence = [
        f"{seconds:.0f} s, {run['features seconds']:.0f} s of them for the features with their errors",
        f"the certificate, checked again in {run['re-check seconds']:.0f} s: {run['re-check']}",
        f"the features that the module computes are up to {shown_up(run['features apart'])} away (the first rows)",
    ]
    return Answer(Verdict.HOLDS if agrees else Verdict.UNDECIDED, reason, dict(run), evidence, seconds=seconds)


TABLE2_NETWORK = Item(
    "table2-network",
    "Safe exploration of a ResNet-18 in real arithmetic: a theorem about the network",
    "Table 2 and Assumption 4",
    "five minutes for Semeion on two cores; an hour for MNIST, half of it to check the certificate again",
    _parts_of_network,
    _claims_of_network,
    datasets=tuple(PAPER),
)
