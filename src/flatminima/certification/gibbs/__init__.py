"""The network that draws its weights anew: its distributions, its draws, and what they cost on samples."""
