"""Weights packed for this machine's kernels: finding them, making them, and referring to them in .onnx files."""
