"""The device and the threads that a command was asked to compute with."""

from __future__ import annotations

from flatminima.errors import UsageError


def usable(name: str | None) -> str | None:
    """The name, if tensors can be made there; None stays None.

    Raises:
        UsageError: naming the devices that can be used.
    """
    import torch

    if name is None:
        return None
    try:
        float(torch.ones(1, device=name))  # the meta device makes tensors, but no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"device {name!r} cannot be used here; available: {', '.join(found)}") from None
    return name


def take_threads(count: int | None) -> None:
    """Let torch use so many CPU threads in this process; None leaves it as it is."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
