from pathlib import Path

import pytest

from phalanx import TrainingJob, Tuner
from phalanx.contracts import Launcher
from phalanx.errors import UserError
from phalanx.launch.attach import AttachLauncher


@pytest.mark.parametrize("launcher", ["attach", AttachLauncher()], ids=["name", "object"])
def test_a_sweep_does_not_run_on_a_group_that_somebody_started(launcher: str | Launcher, tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text("0,1\n1,2\n" * 20)
    job = TrainingJob(algorithm="kmeans", hyperparameters={"k": 2}, inputs={"train": str(train)}, launcher=launcher)
    with pytest.raises(UserError, match=r"attach.* is for single jobs"):
        Tuner(job, name="sweep", output=str(tmp_path / "runs"), objective="train:msd", max_jobs=2).run(progress=False)
    assert not (tmp_path / "runs").exists()
