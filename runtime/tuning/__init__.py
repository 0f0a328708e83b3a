"""Weights packed for this machine's kernels: found, made, and named in .onnx files."""
