import pytest
import torch

from facetrain.classifier.rows import RowOptimizer
from facetrain.config import OptimConfig

CONFIGS = [OptimConfig(weight_decay=0.01), OptimConfig(name="adamw", weight_decay=0.1, betas=(0.8, 0.95))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_with_all_rows_it_is_torch_optim(config):
    table = torch.randn(7, 3, dtype=torch.float64)
    expected = table.clone().requires_grad_()
    reference = (
        torch.optim.SGD([expected], 0.1, config.momentum, weight_decay=config.weight_decay)
        if config.name == "sgd"
        else torch.optim.AdamW([expected], 0.1, config.betas, weight_decay=config.weight_decay)
    )
    optimizer = RowOptimizer(table, config)
    for _ in range(5):
        grad = torch.randn(7, 3, dtype=torch.float64)
        expected.grad = grad.clone()
        reference.step()
        optimizer.step(table, slice(None), table, grad, 0.1)
        torch.testing.assert_close(table, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_a_row_moves_as_if_it_were_alone_and_rests_when_it_is_not_drawn(config):
    together = torch.randn(5, 3, dtype=torch.float64)
    alone = [row[None].clone() for row in together]
    optimizer = RowOptimizer(together, config)
    single = [RowOptimizer(row, config) for row in alone]
    for drawn in ([0, 3], [1], [0, 1, 4], [3], []):
        before = together.clone()
        rows = torch.tensor(drawn, dtype=torch.int64)
        grad = torch.randn(len(drawn), 3, dtype=torch.float64)
        optimizer.step(together, rows, together[rows], grad, 0.05)
        for place, row in enumerate(drawn):
            single[row].step(alone[row], slice(None), alone[row], grad[place : place + 1], 0.05)
        resting = [row for row in range(5) if row not in drawn]
        assert torch.equal(together[resting], before[resting])
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
