"""LEAP's reference state (Eq. 3 to 6 and 9) against examples worked out by hand: others compare with it."""

import math
import statistics

import numpy as np
import pytest
from leap_reference import Reference


def reference(class_counts, *, variant="full", head_threshold=None, **keys):
    """Every step updates and angles stay as they are, unless said otherwise."""
    keys = {"sync_interval": 1, "quantise": False} | keys
    return Reference(class_counts, variant=variant, head_threshold=head_threshold, **keys)


def at(*angles):
    """Rows in the plane at these angles to (1, 0)."""
    return np.array([[math.cos(angle), math.sin(angle)] for angle in angles])


def step(ref, rows, labels):
    ref.observe(rows, labels)
    ref.end_step()


def filled(class_angles, class_counts=None, **keys):
    """A reference whose classes have exactly these angles in memory: gamma = 1 leaves their centres at (1, 0)."""
    ref = reference(class_counts or [len(angles) for angles in class_angles], center_gamma=1.0, **keys)
    step(ref, at(*(0.0 for _ in class_angles)), list(range(len(class_angles))))
    for label, angles in enumerate(class_angles):
        step(ref, at(*angles), [label] * len(angles))
    return ref


# --- Eq. 3 and 4: centres and angles ---------------------------------------------------------------------------------


def test_the_first_centre_is_the_mean_of_the_normalised_rows():
    ref = reference([5])
    step(ref, np.array([[2.0, 0.0], [0.0, 3.0]]), [0, 0])
    np.testing.assert_allclose(ref.centres[0], [0.5, 0.5])


@pytest.mark.parametrize(("gamma", "centre"), [(0.9, [0.55, 0.45]), (0.1, [0.95, 0.05])])
def test_gamma_weighs_the_previous_centre(gamma, centre):
    ref = reference([5], center_gamma=gamma)
    step(ref, np.array([[2.0, 0.0], [0.0, 3.0]]), [0, 0])
    step(ref, np.array([[7.0, 0.0]]), [0])
    np.testing.assert_allclose(ref.centres[0], centre)


def test_angles_to_the_previous_centre_begin_with_the_second_sight():
    ref = reference([5])
    step(ref, np.array([[2.0, 0.0], [0.0, 3.0]]), [0, 0])
    assert ref.rings == {0: []}
    step(ref, np.array([[7.0, 0.0]]), [0])
    assert ref.rings[0] == pytest.approx([math.pi / 4])


def test_angles_to_the_updated_centre_begin_with_the_first_sight():
    ref = reference([5], angle_against="updated")
    step(ref, np.array([[2.0, 0.0], [0.0, 3.0]]), [0, 0])
    assert ref.rings[0] == pytest.approx([math.pi / 4, math.pi / 4])
    step(ref, np.array([[7.0, 0.0]]), [0])
    assert ref.rings[0] == pytest.approx([math.pi / 4, math.pi / 4, math.atan(0.45 / 0.55)])


@pytest.mark.parametrize("row", [[3.0, 4.0], [-3.0, -4.0]])
def test_a_row_on_its_centre_or_opposite_has_an_angle(row):
    ref = reference([5])
    step(ref, np.array([[3.0, 4.0]]), [0])
    step(ref, np.array([row]), [0])
    assert ref.rings[0] == pytest.approx([0.0 if row[0] > 0 else math.pi], abs=1e-7)


def test_an_angle_is_kept_as_a_sixteen_bit_code():
    # A quarter of 65535 is 16383.75, which code 16384 stands for.
    ref = filled([[math.pi / 4, math.pi]], quantise=True)
    assert ref.rings[0] == [16384 * math.pi / 65535, math.pi]


# --- When the state changes ------------------------------------------------------------------------------------------


def test_the_rows_of_five_steps_are_one_mini_batch_of_the_fifth():
    ref = reference([9], sync_interval=5)
    for angle in (0.0, 0.1, 0.2, 0.3):
        step(ref, at(angle), [0])
    assert ref.centres == {}
    step(ref, at(0.4), [0])
    np.testing.assert_allclose(ref.centres[0], at(0.0, 0.1, 0.2, 0.3, 0.4).mean(axis=0))
    assert ref.rings == {0: []}
    for angle in (0.1, 0.2, 0.5, 0.8):
        step(ref, at(angle), [0])
    assert ref.rings == {0: []}
    step(ref, at(1.2), [0])
    # The first centre lies at 0.2; its weight against the mean of the second five is 0.9 to 0.1, as one update.
    assert ref.rings[0] == pytest.approx([0.1, 0.0, 0.3, 0.6, 1.0], abs=1e-7)
    first, second = at(0.0, 0.1, 0.2, 0.3, 0.4).mean(axis=0), at(0.1, 0.2, 0.5, 0.8, 1.2).mean(axis=0)
    np.testing.assert_allclose(ref.centres[0], 0.9 * first + 0.1 * second)


def test_micro_batches_of_a_step_follow_each_other():
    ref = reference([9, 9], center_gamma=1.0)
    step(ref, at(0.0, 0.0), [0, 1])
    ref.observe(at(0.3, 0.9, 0.1), [0, 1, 0])
    ref.observe(at(0.8, 0.2), [1, 0])
    ref.end_step()
    assert ref.rings[0] == pytest.approx([0.3, 0.1, 0.2])
    assert ref.rings[1] == pytest.approx([0.9, 0.8])


def test_a_class_without_rows_keeps_its_state_and_a_class_never_seen_has_none():
    ref = filled([[0.1, 0.3], [0.2, 0.6]], class_counts=[2, 2, 2])
    centre, ring, variance = ref.centres[1].copy(), list(ref.rings[1]), ref.variances[1]
    step(ref, at(1.0), [0])
    assert np.array_equal(ref.centres[1], centre)
    assert (ref.rings[1], ref.variances[1]) == (ring, variance)
    assert ref.centres.keys() == ref.rings.keys() == ref.variances.keys() == {0, 1}


def test_rows_are_copied():
    ref, rows = reference([2], sync_interval=2), at(0.0)
    step(ref, rows, [0])
    rows[:] = at(1.0)
    ref.end_step()
    np.testing.assert_allclose(ref.centres[0], [1.0, 0.0])


# --- Eq. 5: the memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "expected"), [(1, [0.5, 0.6]), (2, [0.3, 0.4, 0.5, 0.6]), (5, [0.2, 0.3, 0.4, 0.5, 0.6])]
)
def test_the_memory_has_p_slots_an_image_and_forgets_the_oldest(factor, expected):
    ref = reference([2], center_gamma=1.0, memory_factor=factor)
    step(ref, at(0.0), [0])
    step(ref, at(0.2, 0.3, 0.4), [0, 0, 0])
    step(ref, at(0.5), [0])
    step(ref, at(0.6), [0])
    assert ref.rings[0] == pytest.approx(expected)


def test_of_more_rows_than_slots_the_last_stay():
    ref = filled([[0.7, 0.1, 0.2, 0.3, 0.5]], class_counts=[3])
    assert ref.rings[0] == pytest.approx([0.2, 0.3, 0.5])
    assert ref.variances[0] == pytest.approx(statistics.variance([0.2, 0.3, 0.5]))


def test_mean_and_variance_are_unbiased_and_need_two_angles():
    ref = filled([[0.1]], class_counts=[3])
    assert ref.means == pytest.approx({0: 0.1})
    assert ref.variances == {}
    step(ref, at(0.3), [0])
    assert ref.means == pytest.approx({0: 0.2})
    assert ref.variances == pytest.approx({0: 0.02})


# --- Eq. 6 and 9: the overall variance, and who gets a cloud ---------------------------------------------------------

# Unbiased variances 0.02, 0.08, 0.005 and 0.045 (half of the squared difference).
FOUR = [[0.1, 0.3], [0.1, 0.5], [0.1, 0.2], [0.1, 0.4]]


def test_vanilla_averages_the_head_classes():
    ref = filled(FOUR, class_counts=[9, 7, 5, 5], variant="vanilla", head_threshold=5)
    assert ref.variances == pytest.approx({0: 0.02, 1: 0.08, 2: 0.005, 3: 0.045})
    assert ref.overall_sigma() == pytest.approx(math.sqrt(0.05))
    # A head class has no cloud though its variance is smaller; K = T is a tail class.
    assert [ref.cloud_std(label) for label in range(4)] == pytest.approx([0, 0, math.sqrt(0.045), math.sqrt(0.005)])


def test_vanilla_leaves_a_tail_class_alone_whose_variance_is_larger():
    ref = filled(FOUR, class_counts=[9, 5, 5, 5], variant="vanilla", head_threshold=5)
    assert ref.overall_sigma() == pytest.approx(math.sqrt(0.02))
    assert [ref.cloud_std(label) for label in range(4)] == pytest.approx([0, 0, math.sqrt(0.015), 0])


def test_full_weighs_by_the_number_of_images_less_one():
    ref = filled(FOUR, class_counts=[9, 7, 2, 5])
    overall = (8 * 0.02 + 6 * 0.08 + 1 * 0.005 + 4 * 0.045) / 19
    assert ref.overall_sigma() == pytest.approx(math.sqrt(overall))
    # The class with the most images has a cloud here: there is neither head nor tail.
    expected = [math.sqrt(overall - 0.02), 0, math.sqrt(overall - 0.005), 0]
    assert [ref.cloud_std(label) for label in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(("variant", "threshold"), [("vanilla", 5), ("full", None)])
def test_classes_without_a_variance_neither_count_nor_get_a_cloud(variant, threshold):
    ref = filled(
        [[0.1, 0.5], [0.2], [0.1, 0.3]], class_counts=[9, 900, 3, 4], variant=variant, head_threshold=threshold
    )
    overall = 0.08 if variant == "vanilla" else (8 * 0.08 + 2 * 0.02) / 10
    assert ref.overall_sigma() == pytest.approx(math.sqrt(overall))
    assert [ref.cloud_std(label) for label in range(4)] == pytest.approx([0, 0, math.sqrt(overall - 0.02), 0])


def test_without_any_variance_to_go_by_there_is_no_cloud():
    assert reference([3]).overall_sigma() is None
    no_head = filled([[0.1, 0.3]], class_counts=[5], variant="vanilla", head_threshold=5)
    assert (no_head.overall_sigma(), no_head.cloud_std(0)) == (None, 0.0)
    # One image a class has the weight 0 in Eq. 9, also where its memory is long enough for a variance.
    single = filled([[0.1, 0.3]], class_counts=[1], memory_factor=2)
    assert single.variances == pytest.approx({0: 0.02})
    assert (single.overall_sigma(), single.cloud_std(0)) == (None, 0.0)


def test_a_cloud_gives_the_tail_the_spread_of_the_head():
    # Section 1's 0.463 and 0.288 rad: two angles d apart have the standard deviation d / sqrt(2).
    head, tail = 0.463 * math.sqrt(2), 0.288 * math.sqrt(2)
    ref = filled([[0.1, 0.1 + head], [0.1, 0.1 + tail]], class_counts=[20, 5], variant="vanilla", head_threshold=5)
    assert ref.overall_sigma() == pytest.approx(0.463)
    assert ref.cloud_std(1) == pytest.approx(0.362526, abs=1e-6)
    assert math.hypot(ref.cloud_std(1), 0.288) == pytest.approx(0.463)
