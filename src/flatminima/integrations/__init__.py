"""PertOPT, SAM and FisherTrace inside other people's training loops. Each module imports its framework itself."""

__all__ = ["huggingface", "huggingface_track", "lightning", "lightning_track"]


def __dir__() -> list[str]:
    return __all__
