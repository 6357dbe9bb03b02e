"""Data that the trials of a sweep share: read and prepared once, in a process that their workers are forked from."""

from __future__ import annotations

from ..data.channel import Channel
from ..errors import UserError
from ..launch.local import LocalLauncher
from ..launch.prepared import PreparedLauncher
from ..shared import may_share
from ..work import AlgorithmWork
from .declared import sample_values
from .plan import Plan


def sharing_launcher(plan: Plan) -> PreparedLauncher | None:
    """Return the launcher of trials that share their data; None where every trial reads its own.

    Shared are local files that are read whole and leave most of the memory free, by trials of an algorithm with one worker.
    """
    job = plan.job
    if job.algorithm is None or job.launcher != "local" or job.workers != 1 or plan.max_jobs < 2:
        return None
    inputs = {name: Channel(url=given) if isinstance(given, str) else given for name, given in job.inputs.items()}
    values = sample_values(plan.static, plan.ranges)
    try:
        if not may_share(inputs):
            return None
        work = AlgorithmWork(job.algorithm, values, workers=1, inputs=inputs, prepare=LocalLauncher().prepare)
    except UserError:  # the first trial says what is wrong
        return None
    payload = {
        "algorithm": job.algorithm,
        "hyperparameters": work.described()["hyperparameters"],
        "inputs": {name: channel.to_json() for name, channel in inputs.items()},
        "seed": job.seed,
    }
    return PreparedLauncher("phalanx.shared:prepare", payload, work.preload)
