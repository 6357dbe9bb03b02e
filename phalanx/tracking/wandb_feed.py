"""The process that holds a run of Weights & Biases: lines of JSON come in, so that the job's own process stays as it was.

wandb keeps threads, a service, variables and a global run in the process that imports it; here these are nobody else's.

in:  {"init": {arguments of wandb.init}}, then {"step", "values"} each, at last {"exit": 0 or 1}
out: {"run": id} after the first
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Feed until told to exit, or until nobody writes any more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what wandb prints is no answer
    import wandb

    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(**json.loads(sys.stdin.readline())["init"], settings=quiet)
    print(json.dumps({"run": run.id}), file=answers, flush=True)
    code = 1
    for line in sys.stdin:
        given = json.loads(line)
        if "exit" in given:
            code = given["exit"]
            break
        run.log(given["values"], step=given["step"])
    run.finish(exit_code=code)


if __name__ == "__main__":
    main()
