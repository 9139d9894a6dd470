"""Names, colours and foreign ids of the nine classes of the embedded scenes."""

import numpy as np

CLASSES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "sky",
    "vegetation",
    "car",
    "person",
    "pole",
    "sign",
)
ROAD, SIDEWALK, BUILDING, SKY, VEGETATION, CAR, PERSON, POLE, SIGN = range(9)
IGNORE = 255

# The classes that have boxes: countable objects with an extent of their own.
BOX_CLASSES: tuple[str, ...] = ("car", "person", "sign")

# Cityscapes' colours, so that pictures look as readers of that data set expect. (9, 3) uint8, RGB.
PALETTE = np.array(
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (70, 130, 180),
        (107, 142, 35),
        (0, 0, 142),
        (220, 20, 60),
        (153, 153, 153),
        (220, 220, 0),
    ],
    dtype=np.uint8,
)

# Cityscapes' `labelIds` and its 19 `trainIds`, in the order of CLASSES.
CITYSCAPES_LABEL_IDS: tuple[int, ...] = (7, 8, 11, 23, 21, 26, 24, 17, 20)
CITYSCAPES_TRAIN_IDS: tuple[int, ...] = (0, 1, 2, 10, 8, 13, 11, 5, 7)
CITYSCAPES_EGO_VEHICLE_ID = 1
