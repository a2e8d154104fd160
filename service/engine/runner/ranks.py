"""The processes of tensor parallelism: how they start, find one another, and end together.

Rank 0 leads: it has the requests, the scheduler and the tokens. The others wait for what it tells them and take part
in the forwards (`service.engine.runner.tensor_parallel`). Two ways to start them:

* ``folio serve --tp N``: this process becomes rank 0 and starts the others beside it.
* ``torchrun --nproc-per-node N $(which folio) serve --tp N``: torchrun starts all, on one machine or on several.

The ranks live and die together. A rank that ends early breaks the collectives of the others, so each of them, too,
says one sentence and ends; nothing waits for a rank that is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import structlog

from service.errors import Exit, InvalidRequest, ModelError

log = structlog.get_logger(__name__)

# A rank waits for the next step as long as nobody asks anything; a rank that died closes its connections at once.
IDLE_LIMIT = timedelta(days=365)
STOP_S = 10.0
_SPAWNED = "FOLIO_RANK_OF"


class Ranks:
    """This process as one of ``size`` ranks; made by `join`."""

    def __init__(self, rank: int, size: int, device: str, followers: list[subprocess.Popen[bytes]]) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._followers = followers
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failing = threading.Lock()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def tell(self, message: Any) -> None:
        """Send a picklable message to all other ranks; they must be in `hear`."""
        with self._lock:
            self._send(message)

    def hear(self) -> Any:
        """Wait for the next message of rank 0.

        Raises:
            RuntimeError: rank 0 is gone.
        """
        import torch.distributed as dist

        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, device=_host())
        return box[0]

    def fail(self, reason: str) -> NoReturn:
        """Say why on stderr and end this process, and with it the group.

        There is no other way: the others may wait in a collective that this rank will never enter.
        """
        with self._failing:  # one sentence, whichever thread sees it first
            if not self._ended.is_set():
                self._ended.set()
                os.write(2, f"folio: {self._dead_rank() or reason}\n".encode())
        for follower in self._followers:
            follower.kill()
        os._exit(int(Exit.FAILED))

    def close(self, in_step: bool = True) -> None:
        """Rank 0: let the others go, and see them go.

        ``in_step`` says that they wait for a message; else those that were started here are ended at once.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        if in_step:
            farewell = threading.Thread(target=self.tell, args=(None,), daemon=True)
            farewell.start()
            farewell.join(STOP_S)
        deadline = time.monotonic() + (STOP_S if in_step else 0.0)
        for follower in self._followers:
            try:
                follower.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait()

    def watch(self) -> None:
        """Rank 0: end with one sentence as soon as a rank that it started has ended."""
        for number, follower in enumerate(self._followers, start=1):
            threading.Thread(target=self._await, args=(number, follower), daemon=True).start()

    def _await(self, number: int, follower: subprocess.Popen[bytes]) -> None:
        follower.wait()
        if not self._ended.is_set():
            self.fail(f"rank {number} of {self.size} has ended; the others end too.")

    def _dead_rank(self) -> str | None:
        """The rank whose end is behind a failed step: a broken connection is seen before the end itself."""
        deadline = time.monotonic() + 1.0
        while self._followers and time.monotonic() < deadline:
            for number, follower in enumerate(self._followers, start=1):
                status = follower.poll()
                if status is not None:
                    return f"rank {number} of {self.size} has ended ({_status(status)}); the others end too."
            time.sleep(0.05)
        return None

    def _send(self, message: Any) -> None:
        import torch.distributed as dist

        dist.broadcast_object_list([message], src=0, device=_host())


_joined: Ranks | None = None


def joined() -> Ranks | None:
    """The group that this process belongs to, once `join` has returned."""
    return _joined


def leading(size: int) -> Ranks | None:
    """The group to lead with ``size`` ranks; None where one is enough.

    Raises:
        ModelError: nothing has joined such a group.
    """
    if size == 1:
        return None
    if _joined is None or _joined.size != size:
        raise ModelError(
            f"A model shared by {size} ranks is for `folio serve --tp {size}` and `folio generate --tp {size}`.",
            hint="Here, leave FOLIO_TENSOR_PARALLEL unset.",
            param="tensor_parallel",
        )
    return _joined


def run_ranks(size: int, device: str, lead: Callable[[], int], follow: Callable[[Ranks], None]) -> int:
    """Run ``lead`` on rank 0 and ``follow`` on the others; returns the exit code of this rank.

    ``size`` 1 is ``lead`` alone, without any group.

    Raises:
        InvalidRequest, ModelError: the group cannot be; nothing was started.
    """
    if size == 1:
        return lead()
    check_devices(size, device)
    ranks = join(size, device)
    if ranks.leads:
        code = int(Exit.FAILED)
        try:
            code = lead()
        finally:
            ranks.close(in_step=code == Exit.OK)
        if code == Exit.OK:
            _leave()
        return code
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 gets them too, drains, and says when it is over
        signal.signal(number, signal.SIG_IGN)
    try:
        follow(ranks)
    except Exception as error:
        ranks.fail(f"rank {ranks.rank} of {size}: {_first_line(error)}")
    _leave()
    return int(Exit.OK)


def check_devices(size: int, device: str) -> None:
    """Refuse what this machine cannot hold, before anything is started or loaded.

    Raises:
        ModelError: too few GPUs, or a torch that has no tensor parallelism on this device.
    """
    import torch

    if device.startswith("cuda"):
        here = torch.cuda.device_count()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        if here < local:
            raise ModelError(
                f"--tp {size} needs {local} GPUs on this machine, which has {here}.",
                hint="Lower --tp, or use --device cpu.",
                param="tensor_parallel",
            )
        return
    preferred = torch.accelerator.current_accelerator()
    if preferred is not None and preferred.type != "cpu":
        raise ModelError(
            f"--tp {size} --device cpu needs a CPU build of torch: this one shards models over {preferred.type}.",
            hint="Install torch from its CPU index, or leave --device out.",
            param="device",
        )


def join(size: int, device: str) -> Ranks:
    """Become a rank: of torchrun's group where it started this process, else rank 0 of a group started here.

    Raises:
        InvalidRequest: torchrun started another number of ranks.
        ModelError: the ranks cannot find one another.
    """
    global _joined
    followers: list[subprocess.Popen[bytes]] = []
    if "RANK" not in os.environ:
        followers = _start_followers(size, device)
    elif int(os.environ.get("WORLD_SIZE", "1")) != size:
        raise InvalidRequest(
            f"--tp {size} was asked for, and torchrun started {os.environ.get('WORLD_SIZE')} ranks.",
            hint="Give both the same number.",
            param="tensor_parallel",
        )
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    own = f"cuda:{local}" if device.startswith("cuda") else "cpu"
    _joined = Ranks(rank, size, own, followers)
    if rank == 0:
        _joined.watch()
    elif _SPAWNED in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[_SPAWNED]),), daemon=True).start()
    _connect(size, rank, own)
    return _joined


def _connect(size: int, rank: int, device: str) -> None:
    import torch
    import torch.distributed as dist

    options: dict[str, Any] = {"backend": "gloo"}
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        # Messages travel between hosts, tensors between GPUs.
        options = {"backend": "cpu:gloo,cuda:nccl", "device_id": torch.device(device)}
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", size))))
    try:
        dist.init_process_group(rank=rank, world_size=size, timeout=IDLE_LIMIT, **options)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"The {size} ranks of --tp cannot find one another: {_first_line(error)}") from error


def _leave() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


def _start_followers(size: int, device: str) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1 … size-1 with torchrun's variables, and set rank 0's own."""
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    command = [sys.executable, "-m", "service.engine.runner.follower", str(size), device]
    followers = []
    for rank in range(1, size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), _SPAWNED: str(os.getpid())}
        followers.append(
            subprocess.Popen(
                command,
                env={**os.environ, **shared, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # rank 0's results may be read by a program
                start_new_session=True,  # Ctrl-C is for rank 0
            )
        )
    os.environ.update(shared, RANK="0", LOCAL_RANK="0")
    return followers


def _end_with(parent: int) -> None:
    """End this rank when the process that started it has: a collective on a GPU would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(int(Exit.FAILED))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _host() -> Any:
    import torch

    return torch.device("cpu")


def _status(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
