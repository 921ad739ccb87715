"""A folded network: equal to the network, and only where it can be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_networks import MIXED, NAN, configs, network_of, rows_like, seeds

from riskmtl.networks import TRUNKS, NetworkConfig
from riskmtl.networks import folded as module
from riskmtl.networks.embedding import PiecewiseLinear
from riskmtl.networks.folded import fold
from riskmtl.scorers import NetworkScorer

SMALL = NetworkConfig(embedding_dim=4, bins=5, steps=6, expert_units=(8, 4), tower_units=(3,))


def everywhere(network: torch.nn.Module) -> torch.Tensor:
    """Rows with missing values, all codes, and numbers on, between and beyond all knots."""
    rows = torch.from_numpy(rows_like(MIXED, 400))
    numeric = network.embedding.numeric
    assert isinstance(numeric, PiecewiseLinear)
    for column, own in zip(
        network.embedding.numeric_columns.tolist(), numeric.knots(), strict=True
    ):
        probes = torch.cat([own, own - 1e-3, own + 1e-3, torch.tensor([-1e6, 1e6, NAN])])
        rows[: len(probes), column] = probes
    return rows


@given(config=configs, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_scores_as_the_network_does(config, seed):
    network = network_of(config, seed=seed).float()
    folded = fold(network, MIXED)
    can = config.members == 1 and config.numeric_embedding == "piecewise_linear"
    assert (folded is not None) == (can and not config.is_cut)
    if folded is not None:
        rows = everywhere(network)
        with torch.inference_mode():
            torch.testing.assert_close(folded(rows), network(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_probabilities_agree_to_a_millionth(trunk):
    config = NetworkConfig(network=trunk, linear_path=True)
    cardinalities = [0] * 12 + [7, 40]
    torch.manual_seed(0)
    network = network_of(config, cardinalities=cardinalities)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.1)
    rows = torch.from_numpy(rows_like(cardinalities, 2000))
    network = network.float()
    with torch.inference_mode():
        found, expected = fold(network, cardinalities)(rows).sigmoid(), network(rows).sigmoid()
    assert expected.std(0).min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cardinalities", [[0, 0, 0], [0], [5, 0], [4, 3]], ids=str)
def test_columns_of_one_kind_alone(cardinalities):
    network = network_of(SMALL, cardinalities=cardinalities).float()
    folded = fold(network, cardinalities)
    assert (folded is not None) == (0 in cardinalities)
    if folded is not None:
        rows = torch.from_numpy(rows_like(cardinalities, 300))
        with torch.inference_mode():
            torch.testing.assert_close(folded(rows), network(rows), rtol=1e-4, atol=1e-4)


def test_a_table_too_large_is_not_made(monkeypatch):
    network = network_of(SMALL).float()
    table = fold(network, MIXED).table
    monkeypatch.setattr(module, "MOST_NUMBERS", table.numel())
    assert fold(network, MIXED) is not None
    monkeypatch.setattr(module, "MOST_NUMBERS", table.numel() - 1)
    assert fold(network, MIXED) is None


def test_a_scorer_embeds_nothing_once_folded(monkeypatch):
    scorer = NetworkScorer(network_of(SMALL).float(), SMALL, MIXED, [False] * 3)
    rows = rows_like(MIXED, 2500)
    expected = scorer.raw(rows)
    ready = scorer.fold()
    np.testing.assert_array_equal(scorer.raw(rows), expected)
    monkeypatch.setattr(scorer.network.embedding, "forward", None)
    np.testing.assert_allclose(ready.raw(rows), expected, rtol=1e-4, atol=1e-4)


def test_moving_to_a_device_forgets_the_table():
    scorer = NetworkScorer(network_of(SMALL).float(), SMALL, MIXED, [False] * 3).fold()
    assert scorer.folded is not None
    assert scorer.on(torch.device("cpu")).folded is None
