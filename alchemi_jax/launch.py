"""How the processes of a program were started: by mpirun, by srun, or by hand with an address.

Only the environment is read. What JAX finds by itself is left to it.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple


#: Rank, number of processes, rank and number on this host, as launchers name them: Open MPI; MPICH, Intel MPI
#: and MVAPICH.
_MPI = (
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
#: Of a step of Slurm. A batch script has most variables of Slurm, but no step.
_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
#: What JAX reads an address from in versions of Open MPI before 5.
_ORTE = "OMPI_MCA_orte_hnp_uri"
#: Variables for starting processes by hand.
ADDRESS, SIZE, RANK = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_LAUNCHERS = {"mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orterun", "orted", "prterun", "prted"}
#: Ports for programs of all kinds end here.
_FIRST_PORT, _PORTS = 61440, 4096


class Launch(NamedTuple):
    """The processes of a program.

    Attributes:
        rank, size: the number of this process, and how many there are.
        address: of process 0, "host:port"; None if JAX finds it, by `method`.
        method: of JAX for finding the address: "ompi", "slurm", "mpi4py", or None.
        local_rank: the number of this process on its host; None if it is not known.
        by: "mpirun", "srun", or "hand".
    """

    rank: int
    size: int
    address: str | None
    method: str | None = None
    local_rank: int | None = None
    by: str = "hand"


def find_launch(
    address: str | None = None,
    size: int | None = None,
    rank: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Launch | None:
    """How this process was started; None if nothing says that there are others.

    Args:
        address, size, rank: in place of what the environment says.

    Raises:
        ValueError: saying what is missing or wrong.
    """
    env = os.environ if environment is None else environment
    address = address or env.get(ADDRESS) or None
    size = _number(env, SIZE) if size is None else size
    rank = _number(env, RANK) if rank is None else rank
    if size is None and rank is None:
        found = _of_mpi(env, address) or _of_slurm(env, address)
        if found is None and address is not None:
            raise ValueError(
                f"there is an address of process 0, {address}, but no number of processes: give size and "
                f"rank, or {SIZE} and {RANK}."
            )
        return found if found is None else _checked(found)
    if size is None or rank is None or (address is None and size != 1):
        given = {f"address ({ADDRESS})": address, f"size ({SIZE})": size, f"rank ({RANK})": rank}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ValueError(f"processes started by hand need address, size and rank: {missing} missing.")
    return _checked(Launch(rank, size, address))


def _checked(found: Launch) -> Launch:
    for name, value, least in (("size", found.size, 1), ("rank", found.rank, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}.")
    if found.rank >= found.size:
        raise ValueError(f"rank is from 0 to {found.size - 1} with {found.size} processes, not {found.rank}.")
    if found.address is not None and not found.address.rpartition(":")[2].isdecimal():
        raise ValueError(f"the address of process 0 is host:port, as in node1:6000, not {found.address!r}.")
    return found


def _of_mpi(env: Mapping[str, str], address: str | None) -> Launch | None:
    for rank_name, size_name, local_name, local_size_name in _MPI:
        rank, size = _number(env, rank_name), _number(env, size_name)
        if rank is None or size is None:
            continue
        local, local_size = _number(env, local_name), _number(env, local_size_name)
        found = Launch(rank, size, address, None, local, "mpirun")
        if address is not None or size == 1:
            return found
        if env.get(_ORTE):
            return found._replace(method="ompi")
        if local_size == size:
            return found._replace(address=f"127.0.0.1:{_FIRST_PORT + _launcher() % _PORTS}")
        if find_spec("mpi4py") is not None:
            return found._replace(method="mpi4py")
        if all(env.get(name) for name in _STEP):
            return found._replace(method="slurm")
        raise ValueError(
            f"mpirun has started {size} processes on several hosts, and where process 0 is cannot be found: "
            f"set {ADDRESS}=host:port for all of them, or install mpi4py."
        )
    return None


def _of_slurm(env: Mapping[str, str], address: str | None) -> Launch | None:
    if not all(env.get(name) for name in _STEP):
        return None
    size = _number(env, "SLURM_STEP_NUM_TASKS") or _number(env, "SLURM_NTASKS")
    rank, local = _number(env, "SLURM_PROCID"), _number(env, "SLURM_LOCALID")
    if size is None or rank is None:
        return None
    return Launch(rank, size, address, None if address or size == 1 else "slurm", local, "srun")


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}, not a whole number.")
    return int(text)


def _launcher() -> int:
    """The process that started all processes of this host: the nearest launcher above this one."""
    process = parent = os.getppid()
    while process > 1:
        try:
            words = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            break
        # The name of the program, in brackets, may hold spaces.
        if words.partition("(")[2].rpartition(")")[0] in _LAUNCHERS:
            return process
        process = int(words.rpartition(")")[2].split()[1])
    return parent


def arguments_of_jax(found: Launch, local_devices: Any = None) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`."""
    if local_devices is None and found.by == "mpirun" and not os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        # As JAX does where it knows the launcher: a GPU for each process of a host.
        local_devices = None if found.local_rank is None else [found.local_rank]
    return {
        "coordinator_address": found.address,
        "num_processes": found.size,
        "process_id": found.rank,
        "local_device_ids": local_devices,
        "cluster_detection_method": found.method,
    }


__all__ = ["ADDRESS", "RANK", "SIZE", "Launch", "arguments_of_jax", "find_launch"]
