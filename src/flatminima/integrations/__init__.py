"""PertOPT, SAM and FisherTrace inside other people's training loops. Each module imports its framework itself."""
