from workers.jobs.benchmark import slowest

LAYERS = [("a", 1.0), ("b", 3.0), ("c", 2.0), ("d", 3.0)]


def test_the_slowest_layers_are_kept_in_order_of_execution() -> None:
    assert slowest(LAYERS, 3) == [("b", 3.0), ("c", 2.0), ("d", 3.0)]


def test_layers_that_are_few_are_all_kept() -> None:
    assert slowest(LAYERS, 4) == LAYERS
