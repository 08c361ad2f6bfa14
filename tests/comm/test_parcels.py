"""A parcel gives the same values in both forms, whichever it came in."""

import numpy as np
import pytest

from fedmpi.comm import Parcel
from fedmpi.sparse import Mask

THETA = np.array([1, -2, 3, -0.0, 5], np.float32)
NOTHING = np.empty(0, np.float32)


@pytest.mark.parametrize("kept", [[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("in_places", [False, True])
def test_both_forms(kept, in_places):
    held = np.array(kept, bool)
    dense, packed = np.where(held, THETA, np.float32(0)), THETA[held]
    parcel = Parcel(Mask.from_bool(held), dense if in_places else packed, NOTHING)
    rooms = []

    def room(size):
        rooms.append(np.full(size, 7, np.float32))
        return rooms[-1]

    assert parcel.packed().tobytes() == packed.tobytes()
    assert parcel.dense(room).tobytes() == dense.tobytes()
    assert len(rooms) == (not in_places and not held.all())  # what is there in the right form is not copied
    assert parcel.dense() is parcel.values or rooms
