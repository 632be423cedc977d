import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from leap_reference import leap_loss

from facetrain.classifier.clouds import TABLE, Cloud, normal_table, places
from facetrain.classifier.margin import apply_margin, turn
from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig, MarginConfig
from facetrain.distributed import World

C, G, D = 11, 6, 5
LABELS = np.array([0, 10, 3, 3, 7, 2])
CPU = torch.device("cpu")
MARGINS = [
    MarginConfig(scale=16),
    MarginConfig(kind="arcface", gradient="exact", scale=16),
    MarginConfig(kind="arcface", gradient="straight_through", scale=16),
    MarginConfig(kind="combined", m1=1.5, m2=0.2, m3=0.1, gradient="exact", scale=16),
]
# Row 1's angles pass 0 and pi; rows 0 and 3 have no cloud.
ROWS, STD = np.array([1, 2, 4, 5]), torch.tensor([3.0, 0.2, 0.7, 1.4], dtype=torch.float64)


def _cloud(per_class=True, longest=100, step=0, rows=ROWS):
    table = normal_table(0, torch.float64, CPU, longest)
    return Cloud(rows, STD[: len(rows)], torch.from_numpy(places(0, step, rows)), table, per_class)


def _dense_alpha(cloud):
    alpha = torch.zeros((G, C), dtype=torch.float64)
    alpha[cloud.rows] = cloud.alpha(slice(None), range(C))
    return alpha


def _classifier(margin, rate=1.0, chunk=4, keep=True):
    config = ClassifierConfig(margin=margin, sample_rate=rate, chunk=chunk, keep_gb=4 if keep else 0)
    classifier = PartialFC(C, D, config, OptimConfig(), World(), 0, torch.float64)
    with torch.no_grad():
        classifier.weight.copy_(torch.randn(C, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    return classifier


def _embeddings():
    return torch.randn(G, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize(("chunk", "keep"), [(1, True), (4, False), (100, True)])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_loss_and_gradients_equal_the_literal_reference(margin, per_class, chunk, keep, rate):
    classifier, x, cloud = _classifier(margin, rate, chunk, keep), _embeddings(), _cloud(per_class)
    alpha = _dense_alpha(cloud)
    theta = torch.arccos(F.normalize(x.detach()) @ F.normalize(classifier.weight.detach()).T)
    assert ((theta + alpha < 0) & (alpha < 0)).any()  # both clips act
    assert ((theta + alpha > math.pi) & (alpha > 0)).any()
    classifier.begin(LABELS, 0)
    loss = classifier.loss(x, LABELS, cloud)
    loss.backward()
    weight = classifier.weight.detach().clone().requires_grad_()
    columns = None if rate == 1 else sorted(set(classifier._sample.rows.tolist()))
    y = x.detach().clone().requires_grad_()
    expected = leap_loss(y, weight, LABELS.tolist(), margin, alpha, columns)
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-10)
    rows = slice(None) if columns is None else columns
    torch.testing.assert_close(classifier.rows.grad, weight.grad[rows], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [0.3, -0.3, 2.5, -2.5])
@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_gradcheck_with_turned_angles(size, kind):
    """The classifier's own gradients by finite differences, for alpha of either sign, in and out of the clips."""
    margin = MarginConfig(kind=kind, gradient="exact", scale=6)
    classifier, x = _classifier(margin), _embeddings()
    table = torch.full((TABLE + 100,), 1.0, dtype=torch.float64)
    cloud = Cloud(ROWS, torch.full((4,), size, dtype=torch.float64), torch.zeros(4, dtype=torch.int64), table, True)

    def loss(a, b):
        classifier.weight = classifier.rows = b
        return classifier.loss(a, LABELS, cloud)

    assert torch.autograd.gradcheck(loss, (x, classifier.weight.detach().clone().requires_grad_()))


def test_a_cloud_of_no_width_changes_no_cosine():
    cosines = torch.linspace(-1, 1, 201)
    turned, slope = turn(cosines, torch.zeros(201))
    assert torch.equal(turned, cosines)
    assert torch.equal(slope, torch.ones(201))
    for margin in MARGINS:
        for plain, with_alpha in zip(
            apply_margin(cosines, margin), apply_margin(cosines, margin, torch.zeros(201)), strict=True
        ):
            torch.testing.assert_close(plain, with_alpha, rtol=1e-5, atol=1e-6)


def test_turned_cosines_of_every_angle():
    theta = torch.linspace(0.01, 3.13, 80, dtype=torch.float64)[:, None]
    alpha = torch.linspace(-math.pi, math.pi, 77, dtype=torch.float64)[None].expand(80, -1)
    cosine = torch.cos(theta).expand(-1, 77).clone().requires_grad_()
    expected = torch.cos((torch.arccos(cosine) + alpha).clamp(0, math.pi))
    (gradient,) = torch.autograd.grad(expected.sum(), cosine)
    turned, slope = turn(cosine.detach(), alpha.contiguous())
    torch.testing.assert_close(turned, expected.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(slope, gradient, rtol=1e-6, atol=1e-9)


def test_draws_do_not_depend_on_how_classes_are_cut():
    cloud = _cloud(longest=3)
    whole = cloud.alpha(slice(None), range(2 * C))
    for start in range(2 * C):
        for stop in (start + 1, start + 2, start + 3):
            torch.testing.assert_close(cloud.alpha(slice(1, 3), range(start, stop)), whole_of(cloud, start, stop)[1:3])
    torch.testing.assert_close(cloud.alpha(slice(None), torch.tensor([3, 9])), whole[:, [3, 9]])
    torch.testing.assert_close(cloud.target_alpha(torch.tensor([0, 5, 9, 21])), whole[range(4), [0, 5, 9, 21]])


def whole_of(cloud, start, stop):
    return cloud.alpha(slice(None), torch.arange(start, stop))


def test_draws_are_keyed_by_step_and_row_and_are_normal():
    table = normal_table(0, torch.float64, CPU, 10)
    assert len(table) == TABLE + 10
    assert torch.equal(table[:10], table[TABLE:])
    assert abs(table[:TABLE].mean()) < 5 / math.sqrt(TABLE)
    assert abs(table[:TABLE].var() - 1) < 5 * math.sqrt(2 / TABLE)
    sorted_table = table[:TABLE].sort().values
    normal = 0.5 * (1 + torch.erf(sorted_table / math.sqrt(2)))
    assert (normal - (torch.arange(TABLE) + 0.5) / TABLE).abs().max() < 2 / math.sqrt(TABLE)  # Kolmogorov
    assert len({*places(0, 0, np.arange(50)), *places(0, 1, np.arange(50)), *places(1, 0, np.arange(50))}) == 150


def test_one_draw_for_all_logits():
    alpha = _cloud(per_class=False).alpha(slice(None), range(C))
    assert (alpha == alpha[:, :1]).all()
    assert len(alpha[:, 0].unique()) == len(ROWS)


def test_no_rows_with_a_cloud_is_the_plain_loss():
    classifier, x = _classifier(MARGINS[1]), _embeddings()
    plain = classifier.loss(x, LABELS)
    none = classifier.loss(x, LABELS, _cloud(rows=np.empty(0, np.int64)))
    torch.testing.assert_close(plain, none, rtol=1e-14, atol=0)
