"""Messages of the library in the words of the command line: options instead of arguments."""

from __future__ import annotations

import re

# arguments of the library that are options of the same name
_OPTIONS = (
    "augment",
    "batch_size",
    "classes",
    "columns",
    "evaluations",
    "image_column",
    "image_size",
    "label_column",
    "layers",
    "layout",
    "ledger",
    "limit",
    "loss",
    "max_pixels",
    "mode",
    "prior_fraction",
    "stated",
    "subset",
)
_OTHERS = {"targets='numbers'": "--loss mse", "scaling='none'": "--scaling none", "score=True": "--score"}
_PYTHON = ("groups", "prior_groups", "repetition", "prior_training", "initial")  # no option: certify(..., groups=...)


def own_words(text: str) -> str:
    """A message of the library in the words of somebody who typed options.

    Examples:
        >>> own_words("pass mode='RGB', or label_column"), own_words("pass targets='numbers' for regression")
        ('pass --mode RGB, or --label-column', 'pass --loss mse for regression')
        >>> own_words("pass groups= (one a sample), or state it with stated=")
        'in Python pass groups= (one a sample), or state it with --stated'
    """
    for theirs, ours in _OTHERS.items():
        text = text.replace(theirs, ours)
    for name in _OPTIONS:
        option = "--" + name.replace("_", "-")
        text = re.sub(rf"(?<![\w'.-]){name}='([^' ;]*)'", rf"{option} \1", text)
        text = re.sub(rf"(?<![\w'.-]){name}=('[^']*'|\d+)", rf"{option} \1", text)
        text = re.sub(rf"(?<![\w'.(-]){name}=(?=[\s,;:]|$)", option, text)
        if "_" in name:
            text = re.sub(rf"(?<!['\w-]){name}(?!['\w=])", option, text)
        text = re.sub(rf"\bpass {name}\b", f"pass {option}", text)
    for name in _PYTHON:
        text = re.sub(rf"(?<!in Python )\b(pass|give|with) {name}=", rf"in Python \1 {name}=", text)
    return text
