"""Stands for the compiled kernels of flash_attn, which it imports but which nothing here calls."""
