"""Training data with random access, in an order made of its contents."""

from flatminima.core.samples.base import Samples, seed_number, spread
from flatminima.core.samples.checks import call, check_every_target, refuse_extra_entries
from flatminima.core.samples.content import content_hashes, hash_bytes
from flatminima.core.samples.sources import as_samples
from flatminima.core.samples.structure import Inputs, leaves, map_tensors, split_batch
from flatminima.core.samples.tensors import TensorSamples

__all__ = [
    "Inputs",
    "Samples",
    "TensorSamples",
    "as_samples",
    "call",
    "check_every_target",
    "content_hashes",
    "hash_bytes",
    "leaves",
    "map_tensors",
    "refuse_extra_entries",
    "seed_number",
    "split_batch",
    "spread",
]
