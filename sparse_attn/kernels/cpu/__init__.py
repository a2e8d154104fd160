"""C++ kernels for the CPU, built at first use."""
