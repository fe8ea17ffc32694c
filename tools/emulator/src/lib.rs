//! A CUDA driver for the CPU.
