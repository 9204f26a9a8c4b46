"""`ShardedMinimum` under its public name; it lives in `flatminima.core.fsdp`."""

from flatminima.core.fsdp import ShardedMinimum

__all__ = ["ShardedMinimum"]
