"""Scores of groups and of earlier runs' measurements: known answers."""

from typing import cast

import pytest
import torch

from diffem.data.measurements import MeasurementSet
from diffem.report.earlier import EarlierRun, compare_with_earlier
from diffem.report.groups import group_scores


def test_the_worst_group_and_all_others() -> None:
    psnr = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    found = group_scores(psnr, torch.tensor([7, 2, 7, 2, 4]))
    assert found["groups"] == {"2": 30.0, "4": 50.0, "7": 20.0}
    assert found["worst_group_psnr_mean"] == 20.0
    assert found["other_groups_psnr_mean"] == pytest.approx((20 + 40 + 50) / 3)
    assert group_scores(psnr, torch.zeros(5)).keys() == {"groups"}  # no other


def earlier(**final: object) -> EarlierRun:
    return EarlierRun("runs/a", cast(MeasurementSet, None), 4, 10, final)


def test_what_was_lost_is_the_mean_over_the_runs() -> None:
    runs = [earlier(psnr_mean=20.0, residual_chi2=1.0, prior=None), earlier(psnr_mean=18.0)]
    after = [{"psnr_mean": 19.0, "residual_chi2": 1.5, "new": 3.0}, {"psnr_mean": 17.5}]
    rows, means = compare_with_earlier(runs, after)
    assert rows[0]["before"] == {"psnr_mean": 20.0, "residual_chi2": 1.0}
    assert rows[0]["after"] == {"psnr_mean": 19.0, "residual_chi2": 1.5}
    assert means == {
        "old_psnr_mean": 18.25,
        "old_psnr_mean_before": 19.0,
        "old_residual_chi2": 1.5,
        "old_residual_chi2_before": 1.0,
        "forgetting_db": 0.75,
    }


def test_without_ground_truth_there_is_no_forgetting() -> None:
    rows, means = compare_with_earlier([earlier(residual_chi2=1.0)], [{"residual_chi2": 1.2}])
    assert rows and "forgetting_db" not in means
    assert compare_with_earlier([], []) == ([], {})
