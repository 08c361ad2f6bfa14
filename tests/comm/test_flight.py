from fedmpi.comm.flight import Flight, budget


def test_two_are_under_way_however_large():
    flight: Flight[str] = Flight(10)
    flight.add(100, "a")
    assert not flight.is_full
    flight.add(100, "b")
    assert flight.is_full
    assert (flight.pop(), len(flight)) == ("a", 1)
    assert not flight.is_full


def test_many_small_ones_until_the_budget_is_used():
    flight: Flight[int] = Flight(10)
    for number in range(4):
        assert not flight.is_full
        flight.add(3, number)
    assert flight.is_full  # 12 bytes
    assert flight.items == [0, 1, 2, 3]
    assert flight.pop() == 0
    assert not flight.is_full  # 9 bytes


def test_the_budget_is_a_quarter_of_the_dense_vector():
    assert budget(1000) == 4 * 1000 // 4
