"""Groups that others started, from the variables that each starter sets (as recorded from their real runs)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phalanx import environment
from phalanx.errors import UserError
from phalanx.groups import FIRST_PORT, PORTS, Group, first_host, group_of

SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_RESTART_COUNT": "4",
    "SLURM_CPUS_PER_TASK": "6",
}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29511",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, Group("Slurm", 3, 5, 1, 2, "gpu07", 0, "71.2", 4, 6)),
        (TORCHRUN, Group("torchrun", 1, 2, 1, 2, "host", 29511, "", 1, 1)),
        ({**SLURM, **TORCHRUN}, Group("torchrun", 1, 2, 1, 2, "host", 29511, "", 1, 1)),  # torchrun inside srun
        (
            {
                "OMPI_COMM_WORLD_RANK": "2",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "SLURM_JOB_NODELIST": "n1,n2",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
                "PMIX_NAMESPACE": "job1",
            },
            Group("mpirun", 2, 4, 0, 2, "n1", 0, "job1"),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Group("mpirun", 1, 2, 1, 2, "127.0.0.1", 0),
        ),
        (
            {"SM_HOSTS": '["algo-2","algo-1"]', "SM_CURRENT_HOST": "algo-2", "TRAINING_JOB_NAME": "j"},
            Group("a SageMaker container", 1, 2, 0, 1, "algo-1", 0, "j"),
        ),
        ({"SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # the batch script itself
        ({"PMI_RANK": "0"}, None),
    ],
)
def test_a_group_is_recognised(variables: dict[str, str], expected: Group | None) -> None:
    assert group_of(variables) == expected


def test_a_container_without_variables_has_its_file(tmp_path: Path) -> None:
    resources = tmp_path / "resourceconfig.json"
    resources.write_text(json.dumps({"hosts": ["algo-1", "algo-2", "algo-3"], "current_host": "algo-3"}))
    found = group_of({}, resources)
    assert found is not None
    assert (found.rank, found.size, found.address) == (2, 3, "algo-1")
    resources.write_text(json.dumps({"hosts": ["algo-1"], "current_host": "algo-3"}))
    with pytest.raises(UserError, match="algo-3"):
        group_of({}, resources)


@pytest.mark.parametrize(
    ("listed", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[3-5]", "n3"), ("a[07,09]-b[1-2],c", "a07-b1"), ("gpu-[001-128].x", "gpu-001.x")],
)
def test_the_first_host_of_a_list(listed: str, first: str) -> None:
    assert first_host(listed) == first


def test_ranks_agree_on_a_port_and_runs_do_not() -> None:
    ports = set()
    for job in range(20):
        found = {environment.placement({**SLURM, "SLURM_JOB_ID": str(job), "SLURM_PROCID": str(rank)}) for rank in range(5)}
        assert {(place.master_addr, place.master_port) for place in found if place} == {
            ("gpu07", next(place.master_port for place in found if place))
        }
        ports |= {place.master_port for place in found if place}
    assert len(ports) > 15
    assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in ports)


def test_variables_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="SLURM_LOCALID=x"):
        group_of({**SLURM, "SLURM_LOCALID": "x"})
