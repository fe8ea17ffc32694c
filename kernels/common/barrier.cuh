// Grid barriers, and the last of several blocks.
#pragma once

// Adds 1 to a counter that blocks share and returns what it was. Release and acquire at the device's scope: what the
// thread wrote before, and what a barrier ordered before it, is visible to the threads that find the new value.
__device__ inline unsigned arrive(unsigned* counter) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    return before;
}

__device__ inline unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Grid barrier of the `share` blocks of one row, in a cooperative launch. Thread 0 alone calls it and sees what the
// others' thread 0 wrote before; a barrier of the block must follow. The last one to leave resets the counter. Where a
// block is missing for `deadline` nanoseconds, it traps: an error of the context in place of a device that hangs.
__device__ inline void meet(unsigned* counter, unsigned share, unsigned long long deadline = 10000000000ull) {
    arrive(counter);
    unsigned long long begun = nanoseconds();
    while (true) {
        unsigned here;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(here)
                     : "l"(__cvta_generic_to_global(counter))
                     : "memory");
        if (here >= share) break;
        if (nanoseconds() - begun > deadline) __trap();
        __nanosleep(32);
    }
    if (atomicAdd(counter, 1u) == 2 * share - 1) atomicExch(counter, 0u);
}

// True in all threads of the last of `blocks` blocks to call it, which then see what the others wrote before. It resets
// the counter.
__device__ inline bool last_of(unsigned* counter, unsigned blocks) {
    __shared__ bool last;
    __syncthreads();
    // Thread 0 alone: a barrier of the block makes its release and its acquire those of all.
    if (threadIdx.x == 0) {
        last = arrive(counter) == blocks - 1;
        if (last) atomicExch(counter, 0u);
    }
    __syncthreads();
    return last;
}
