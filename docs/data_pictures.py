"""Draw CIFAR-100's pairs of equal training images for data.md: ALIGNVER_DATA=DIR python docs/data_pictures.py.

DIR holds CIFAR-100 in one of the forms that ``alignver.data.image_sets.cifar100`` reads. The picture is committed,
since a build of the site has no data sets.
"""

from __future__ import annotations

import os
import pathlib
import sys

import alignver as av
from alignver.data.image_sets import cifar100
from alignver.report.verdict_plots import pairs

PICTURE = pathlib.Path(__file__).parent / "results" / "data" / "cifar100-pairs.png"
# The fine labels, in the order of the data set's own list of names: alphabetical.
NAMES = """
apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, butterfly, camel,
can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup, dinosaur,
dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, leopard, lion,
lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid, otter, palm tree,
pear, pickup truck, pine tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket, rose, sea,
seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar, sunflower, sweet pepper, table, tank,
telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale, willow tree, wolf, woman, worm
"""


def main() -> int:
    """Find the pairs and draw them, conflicts first."""
    folder = os.environ.get("ALIGNVER_DATA")
    if not folder:
        print("ALIGNVER_DATA names no folder", file=sys.stderr)
        return 2
    names = [name.strip() for name in NAMES.split(",")]
    data = cifar100(folder)
    measured = av.check_data(data.x, data.y).measured
    conflicts = measured["conflicts"]["pairs"]
    found = [*conflicts, *(pair for pair in measured["equal"]["pairs"] if pair not in conflicts)]
    titles = []
    for i, j in found:
        one, other = names[data.y[i]], names[data.y[j]]
        said = f"{one}, both" if one == other else f"{one} \N{NOT EQUAL TO} {other}"
        titles.append(f"{i} and {j}\n{said}")
    axes = pairs([(data.x[i], data.x[j]) for i, j in found], titles, columns=4, width=7.5)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE.name}: {len(found)} pairs, {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
