"""Quantized weights on disk: safetensors, checkpoint directories, and how one is made of another."""
