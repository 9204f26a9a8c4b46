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


# where a word is an argument, not a part of a path or the name of a column
_BEFORE = r"(?<![\w'.,/\\=-])"
_AFTER = r"(?![\w/\\]|\.\w)"
_ADVICE = r"\b(pass|give|got|or|and|with|without|beside|smaller|larger|a|no) "


def own_words(text: str) -> str:
    """A message of the library in the words of somebody who typed options.

    Examples:
        >>> own_words("pass mode='RGB', or label_column"), own_words("pass targets='numbers' for regression")
        ('pass --mode RGB, or --label-column', 'pass --loss mse for regression')
        >>> own_words("pass groups= (one a sample), or state it with stated=")
        'in Python pass groups= (one a sample), or state it with --stated'
        >>> own_words("/runs/batch_size/subset=100/w.pt: columns x, image_size")
        '/runs/batch_size/subset=100/w.pt: columns x, image_size'
    """
    for theirs, ours in _OTHERS.items():
        text = text.replace(theirs, ours)
    for name in _OPTIONS:
        option = "--" + name.replace("_", "-")
        text = re.sub(rf"{_BEFORE}{name}='([^' ;]*)'{_AFTER}", rf"{option} \1", text)
        text = re.sub(rf"{_BEFORE}{name}=('[^']*'|\d+){_AFTER}", rf"{option} \1", text)
        text = re.sub(rf"{_BEFORE}(?<!\(){name}=(?=[\s,;:]|$)", option, text)
        if "_" in name:
            text = re.sub(rf"{_ADVICE}{name}(?!=){_AFTER}", rf"\1 {option}", text)
        text = re.sub(rf"\bpass {name}{_AFTER}", f"pass {option}", text)
    for name in _PYTHON:
        text = re.sub(rf"(?<!in Python )\b(pass|give|with) {name}=", rf"in Python \1 {name}=", text)
    return text
