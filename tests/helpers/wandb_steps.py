"""Logs to W&B as a run does, step by step as its standard input says: open, log, close.

After each step it prints how many seconds of the run the step took.
"""

import atexit
import sys
import time

from diffem.logging.jsonl import JSONLLogger
from diffem.logging.wandb import WandbLogger

run_dir = sys.argv[1]
metrics = f"{run_dir}/metrics.jsonl"
lines = JSONLLogger(metrics)
logger = WandbLogger("diffem", run_dir, "name", metrics, f"{run_dir}/figures")
count = 0
for word in sys.stdin:
    start = time.monotonic()
    match word.strip():
        case "open":
            logger.log_hyperparams({"seed": 0})
        case "log":
            for _ in range(5):
                lines.log_metrics({"m_step/loss": float(count)}, count)
                logger.log_metrics({"m_step/loss": float(count)}, count)
                count += 1
        case "close":
            logger.close()
            atexit._run_exitfuncs()  # W&B has more to do when the process ends
    print(time.monotonic() - start, flush=True)
