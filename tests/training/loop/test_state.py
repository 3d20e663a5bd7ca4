"""The running mean of the weights, against its recurrence written out."""

import copy

import torch
from torch import nn

from training.loop.state import average_weights


def test_it_follows_its_recurrence() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = average_weights(network, decay=0.3)  # type: ignore[arg-type]
    expected = copy.deepcopy(network.state_dict())
    for n in range(1, 5):
        for value in network.state_dict().values():
            value += 1
        average.update_parameters(network)
        decay = min(0.3, (1 + n) / (10 + n))
        for key, value in network.state_dict().items():
            is_count = not value.is_floating_point()
            expected[key] = value.clone() if is_count else decay * expected[key] + (1 - decay) * value
    found = average.module.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_it_can_be_saved_and_goes_on() -> None:
    network = nn.Linear(1, 1)
    first, second = (average_weights(network, decay=0.9) for _ in range(2))  # type: ignore[arg-type]
    with torch.no_grad():
        network.weight += 1
    first.update_parameters(network)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update_parameters(network)
    assert torch.equal(first.module.weight, second.module.weight)
