"""The processes that train together, one per device, and how they agree.

Decides device and precision, through Accelerate. If only one process does some work, all others receive its result or
its error, so that none of them waits forever.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    InitProcessGroupKwargs,
    gather_object,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retrieval.errors import DeviceUnavailable, InvalidInput, InvalidSettings, RetrievalError, Unavailable

T = TypeVar("T")

# Longer than one process may need to decode all images, to evaluate or to write while the others wait for it.
_LONGEST_WAIT = timedelta(hours=4)


class Processes:
    """This process, one of those that train together.

    rank: from 0; rank 0 is the main process, the only one that writes, evaluates and reports; world: number of
    processes.
    """

    def __init__(self, device: str, precision: Literal["no", "bf16", "fp16"]) -> None:
        target = select_device(device)
        if precision == "fp16" and target.type == "cpu":
            raise InvalidSettings("loop.precision: fp16 needs a GPU, found the device cpu: use bf16 or no")
        # Accelerate keeps device and precision until the process ends; another run in this process may need others.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=target.type == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=1,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
        )
        self.device: torch.device = self.accelerator.device
        # Benchmarking may select another convolution algorithm each time, which sums in another order.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self._first_of_machine: int = self.rank - self.accelerator.local_process_index

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise Unavailable within the context if another process ends while this one waits for it."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _is_lost_connection(error):
                raise
            raise Unavailable(
                f"another process of this run has ended, found by process {self.rank}: see its own message or the "
                "system's log for the reason. When it is fixed, resume with --resume"
            ) from error

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process; return its result, or raise its error, in all processes."""
        return self._on(0, work)

    def on_each_machine(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process of each machine; return its result in all processes of that machine.

        An error on one machine is raised on all of them.
        """
        return self._on(self._first_of_machine, work)

    def _on(self, leader: int, work: Callable[[], T]) -> T:
        """Run `work` in the leaders; every process names the leader whose result it gets, a leader names itself."""
        if self.world == 1:
            return work()
        outcome: tuple[T | None, RetrievalError | None] = (None, None)
        if self.rank == leader:
            try:
                outcome = work(), None
            except RetrievalError as error:
                gather_object([(None, error)])
                raise
            except Exception as error:
                failed = "the main process" if self.is_main else f"process {self.rank}"
                gather_object([(None, Unavailable(f"{failed} failed, see its traceback: {error!r}"))])
                raise
        outcomes = gather_object([outcome])
        if errors := [error for _, error in outcomes if error is not None]:
            raise errors[0]
        return cast(T, outcomes[leader][0])

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows [n, ...] of all processes, with the same n in each: [world * n, ...]."""
        gathered: Tensor = self.accelerator.gather(rows)
        return gathered

    def collect(self, values: Sequence[T]) -> list[T]:
        """Concatenate the values of all processes, which must be picklable, in the order of the processes."""
        return list(gather_object(list(values)))

    def agree_on_any(self, noted: bool) -> bool:
        """Return in all processes whether `noted` is true in one of them."""
        if self.world == 1:
            return noted
        count = self.accelerator.reduce(torch.tensor(int(noted), device=self.device), reduction="sum")
        return bool(count.item())

    def share(self, n: int) -> slice:
        """Return the slice of n rows that belongs to this process; n is a multiple of the number of processes."""
        part = n // self.world
        return slice(self.rank * part, (self.rank + 1) * part)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its gradients are averaged over the processes, if there are several."""
        if self.world == 1:
            return module
        devices = None if self.device.type == "cpu" else [self.device.index]
        # Buffers are frozen statistics, or already equal on all processes.
        return DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False)

    def without_sync(self, model: nn.Module, *, when: bool) -> AbstractContextManager[None]:
        """Keep the gradients of a wrapped model local to this process within the context, if `when` is true."""
        without: AbstractContextManager[None] = self.accelerator.no_sync(model) if when else nullcontext()
        return without

    def average_gradients(self, module: nn.Module) -> None:
        """Replace the gradients of a module that is not wrapped by their mean over the processes."""
        if self.world == 1:
            return
        for parameter in module.parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(own, reduction="mean")


def select_device(name: str) -> torch.device:
    """Return the device named cpu, cuda or auto (cuda if present). Raises DeviceUnavailable if cuda is missing."""
    if name not in ("cpu", "cuda", "auto"):
        raise InvalidInput(f"device: expected cpu, cuda or auto, found {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("device cuda was requested, but torch finds none: use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether another process is gone. Gloo has no exception class of its own, so match on the message."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def is_main_process() -> bool:
    """Return whether this is the main process, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def leave_processes() -> None:
    """Leave the process group; call in all processes at the end of their work. Does nothing in a single process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
