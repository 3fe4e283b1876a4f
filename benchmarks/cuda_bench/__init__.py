"""What benchmarks/cuda.py is made of: figures, problems, contenders, timing."""
