// Entry names, ids, division, and programmatic dependent launch.
#pragma once
#include "args.cuh"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
// `extern "C" __global__ void KERNEL(rope_wide) { ... }` is `rope_wide_bf16` in the module of bf16. Its one parameter,
// `args`, has the type that the list of kernels (src/gpu/kernel.rs) gives it: an entry that is not in the list does not
// compile.
#define KERNEL(name) JOIN(name, DTYPE)(const JOIN(name, args) args)

// Waits for the kernels before this one in its stream, if this one was launched ahead of their end, and lets the next
// one start if it was launched so. What the caller's kernels did not write (rates, slopes) may be read before.
//
// The next kernel's blocks come when every block of this one has been here, so they take no place from these, and their
// own wait ends when this kernel has ended and its stores are seen. So the earlier it is let go, the more of its start
// is hidden; at a kernel's end, nothing would be.
__device__ inline void wait_for_predecessor() {
    asm volatile("//sm_90+ griddepcontrol.wait;" ::: "memory");
    asm volatile("//sm_90+ griddepcontrol.launch_dependents;");
}

// n / by for n below 2^31, in three instructions.
__device__ inline unsigned divide(unsigned n, const Divisor& by) { return __umulhi(2 * n, by.multiplier) >> by.shift; }

__device__ inline long long read_id(const void* ids, IdType type, long long index) {
    if (type == IdType::I64) return static_cast<const long long*>(ids)[index];
    int id = static_cast<const int*>(ids)[index];
    return type == IdType::U32 ? static_cast<long long>(static_cast<unsigned>(id)) : id;
}

// The sequence that token `token` of a packed batch belongs to: the last one that begins at it or before it.
__device__ inline unsigned find_sequence(const int* indptr, unsigned sequences, long long token) {
    unsigned low = 0;
    unsigned high = sequences;
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (indptr[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
