// write:  x[b, h, i, j] = sum of terms(b, h, query i, key j)
// add:    x[b, h, i, j] += sum of terms(b, h, query i, key j)
//
// As toeplitz.cu; the terms are those of terms.cuh.
#include "bias/apply.cuh"
#include "bias/terms.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) KERNEL(apply_terms) { apply<TermsBias>(args.call, args.terms); }
