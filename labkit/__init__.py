"""labkit: learn Linux through eBPF, and find noisy neighbours for real."""

__version__ = "0.1.0"
