// RoPE by the exact phase: see rope.cuh. Apart from its other sources, so that these entries alone are compiled for two
// generations.
#include "rotate/rope.cuh"

// 48 registers hold the 16 angles and both packs without spills from compute capability 9.0 on: five blocks of 256 a
// multiprocessor. Before it the compiler needs 64.
#if __CUDA_ARCH__ >= 900
#define BOUNDS __launch_bounds__(256, 5)
#else
#define BOUNDS __launch_bounds__(256, 4)
#endif

extern "C" __global__ void BOUNDS KERNEL(rope_wide) { rope<WIDE, Exact>(args); }
extern "C" __global__ void BOUNDS KERNEL(rope_mid) { rope<MID, Exact>(args); }
