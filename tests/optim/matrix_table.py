"""Which cells are refused and why; every other one is equal to the plain loop. Prints docs/optimizers.md's table.

python tests/optim/matrix_table.py
"""

from __future__ import annotations

from matrix_reference import METHODS, SITUATIONS

FRAMEWORKS = (
    "plain loop", "Lightning, automatic", "Lightning, manual", "Fabric", "accelerate", "Hugging Face Trainer",
    "DistributedDataParallel", "FSDP1", "FSDP2",
)  # fmt: skip
RANKS = ("DistributedDataParallel", "FSDP1", "FSDP2")
REASONS = {
    "eval": ("a forward pass in eval() mode meets noise: evaluate outside of the block", "in eval() mode"),
    "manual": ("it makes backward passes of its own: manual optimization", "does not require grad"),
    "fsdp1": ("flattened shards have no norm of their own: use FSDP2", "FSDP1"),
    "fisher": ("it displaces whole weights: use DistributedDataParallel", "cut them into shards"),
    "ddp": ("DDP stops averaging the gradients of changed weights: wrap anew", "wrap the network anew"),
    "dtype": ("torch: FSDP2 keeps the dtype it was given", "dtype double"),
    "format": ("torch: FSDP2 takes contiguous weights only", "does not support non-contiguous"),
    "half": ("the Trainer skips steps under its float16 scaler only: differences need float32", "16 bits would drown"),
}  # what the page says, and what the error says


def reason(framework, method, situation):
    """Key of REASONS, or None for a cell that is equal to the plain loop."""
    fisher = method == "FisherTrace"
    switches = situation in ("dtype switch", "memory-format switch")
    if framework == "Hugging Face Trainer" and situation == "skipped step":
        return "half" if fisher else None
    if framework == "Lightning, automatic" and fisher:
        return "manual"
    if framework == "FSDP2" and situation == "memory-format switch":
        return "format"
    if framework in ("FSDP1", "FSDP2") and fisher:
        return "fisher"
    if framework == "FSDP1":
        return "fsdp1"
    if framework == "DistributedDataParallel" and switches and not fisher:
        return "ddp"
    if framework == "FSDP2" and situation == "dtype switch":
        return "dtype"
    return "eval" if situation == "evaluation inside" else None


def table():
    """Markdown: a row a framework and method, a column a situation, `=` or the number of a reason."""
    letters = {key: str(i) for i, key in enumerate(REASONS, 1)}
    lines = ["| framework | method | " + " | ".join(SITUATIONS) + " |", "|---" * (len(SITUATIONS) + 2) + "|"]
    for framework in FRAMEWORKS:
        for method in METHODS:
            marks = [letters.get(reason(framework, method, situation), "=") for situation in SITUATIONS]
            lines.append(f"| {framework} | {method} | " + " | ".join(marks) + " |")
    return "\n".join([*lines, "", *(f"{letters[key]}. {text}" for key, (text, _) in REASONS.items())])


if __name__ == "__main__":
    print(table())
