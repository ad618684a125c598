"""Table 2's row for CIFAR-100 without repeated images: what is true of the 49986 distinct ones.

Equal images have equal features, so that the row as printed is false for every network (``table2-network --dataset
cifar100`` proves that). ``table2-distinct`` asks what is left of it: are the features of one image of each pair rich
enough, in real arithmetic?
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from alignver.checks.exploration import check_safe_exploration
from alignver.checks.recheck import recheck
from alignver.data.archives import Dataset
from alignver.experiments import table2
from alignver.experiments.conduct import Claim, Item, Part, Setting
from alignver.experiments.networks import resnet18
from alignver.kernel import Certificate
from alignver.network.enclosed_features import inputs_again
from alignver.results import Subject

__all__ = ["TABLE2_DISTINCT", "distinct", "run"]

DATASETS = ("cifar100",)


def distinct(data: Dataset) -> Dataset:
    """Return the data without the images that agree with an earlier one in every pixel.

    Examples
    --------
    >>> from alignver.data import semeion
    >>> digits = semeion().take(np.array([3, 5, 3, 4]))
    >>> len(distinct(digits)), bool((distinct(digits).x == digits.x[[0, 1, 3]]).all())
    (3, True)
    """
    first = np.unique(data.x.reshape(len(data), -1), axis=0, return_index=True)[1]
    return data.take(np.sort(first))


def run(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Prove rank n of phi for the distinct images of a data set, about the network, and check the certificate again.

    Returns
    -------
    dict
        The numbers of the row, as ``table2-network`` has them; ``repeated`` is the number of images left out.
    """
    row, everything = table2.load(name, setting.data_folder)
    data = distinct(everything)
    images = table2._images(data)
    model = resnet18(int(images.shape[1]), int(everything.y.max()) + 1, seed=seed)
    result = check_safe_exploration(model, X=images, layer="features", folder=setting.cache, seed=seed)
    record = {
        "data": f"{everything.name} without repeated images",
        "n": len(data),
        "repeated": len(everything) - len(data),
        "m_{H-1}": row.m,
        "m_H": result.measured.get("width"),
        "limit": -(-len(data) // row.m),
        **{key: getattr(result, key).value for key in ("verdict", "rigor", "subject")},
        "reason": result.reason,
        "seconds": result.cost["seconds"],
        "sha256": everything.sha256,
    }
    if result.subject is not Subject.NETWORK or not isinstance(result.certificate, Certificate):
        return record
    again = recheck(result.certificate, **inputs_again(result.certificate, model, images)[0])
    record |= {f"features {key}": result.measured["network"][key] for key in ("delta", "apart", "seconds")}
    # Features from a cache are proved by the re-check alone.
    return record | {
        "rigor": again.rigor.value,
        "re-check": again.verdict.value,
        "re-check seconds": again.cost["seconds"],
    }


def _parts(setting: Setting) -> list[Part]:
    return [
        Part(
            f"{name}, seed {seed}",
            {"dataset": name, "seed": seed, "statistics": "initial", "width": "smallest", "images": "distinct"},
            functools.partial(run, name, seed, setting),
        )
        for name in setting.select(tuple(table2.PAPER), DATASETS)
        for seed in range(setting.on_cpu().seeds or 1)
    ]


def _claims(setting: Setting) -> list[Claim]:
    """Compare each row with the paper's, which counts repeated images too."""
    claims = []
    for part in _parts(setting):
        name, seed = part.recipe["dataset"], part.recipe["seed"]
        row = table2.PAPER[name]
        paper: dict[str, Any] = {"n": row.n, "repeated": 0, "m_{H-1}": row.m, "m_H": row.width}
        paper |= dict.fromkeys(("subject", "rigor", "features delta", "seconds", "re-check"))
        sentence = f"safe exploration holds for the distinct images of {name}, about the network"
        claims.append(Claim(f"{name}-seed-{seed}", sentence, paper, [part.key], table2._of_network))
    return claims


TABLE2_DISTINCT = Item(
    "table2-distinct",
    "Safe exploration of a ResNet-18 for the distinct images of CIFAR-100: a theorem about the network",
    "Table 2 and Assumption 4",
    "an hour for CIFAR-100 on two cores, half of it to check the certificate again",
    _parts,
    _claims,
    datasets=tuple(table2.PAPER),
)
