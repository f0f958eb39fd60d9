"""Triton kernels and their launchers, one file per op, imported when backend "triton" first runs.

A launcher has the signature of its op's schema, takes checked tensors, and returns what the op
returns. Nothing here is tuned at run time: configs.json says which tile a kernel has for an
architecture and a class of sizes (launch.py); benchmarks/tune.py writes it.
"""
