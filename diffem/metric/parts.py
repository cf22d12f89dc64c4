"""Scores of parts of the held-out measurements: of groups, and of earlier runs' measurements."""

from diffem.metric.score import Score

WORST_GROUP = Score(
    "worst_group_psnr_mean", "PSNR of mean, worst group", unit="dB", digits=2, better="higher"
)
OTHER_GROUPS = Score(
    "other_groups_psnr_mean", "PSNR of mean, other groups", unit="dB", digits=2, better="higher"
)
OLD_PSNR_MEAN = Score(
    "old_psnr_mean", "PSNR of mean, earlier runs", unit="dB", digits=2, better="higher"
)
FORGETTING = Score("forgetting_db", "forgetting", unit="dB", digits=2, better="lower")
