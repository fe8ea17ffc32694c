// Gradients of RoPE's angles. With (a, b) a pair and (da, db) its gradient, both before the rotation or both after it:
//     gradient of the angle   g = a db - b da
//     of a frequency          sum over tokens and the heads of its set of  position[axis] * g
//     of a position           sum over heads and pairs of                  frequency[axis, set, pair] * g
//
// q, k         [batch, tokens, heads, dim] by strides in elements (64 bits), channels contiguous, and their gradients
// frequencies  f32 [axes, sets, pairs] radians per unit of the position
// units        f32 [axes] what a unit of positions is
//
// A thread owns WIDE pairs in a row, whatever the accesses. Sums have one order, which shapes alone decide.
//
// Bytes: tensors and gradients are read once for each four axes, partial sums written and read once.
#include "common/angle.cuh"
#include "common/position.cuh"
#include "common/reduce.cuh"
#include "common/scalar.cuh"

// Axes of one pass.
constexpr unsigned AXES = 4;
// Tokens of a chunk side by side.
constexpr unsigned ROWS = 8;

// The pairs from `pair` on of a head: first channels in `a`, second ones in `b`, 0 beyond the last pair.
template <bool PACKS>
__device__ void load_pairs(const RopeGradArgs& args, const T::Bits* head, unsigned pair, float (&a)[WIDE],
                           float (&b)[WIDE]) {
    if constexpr (PACKS) {
        const T::Bits* at = head + (pair << args.interleaved);
        Pack<WIDE> first = Pack<WIDE>::load(at);
        Pack<WIDE> second = Pack<WIDE>::load(at + (args.interleaved ? WIDE : args.pairs));
        if (args.interleaved) split(first, second);
        unpack(first, a);
        unpack(second, b);
    } else {
        unsigned second = args.interleaved ? 1 : args.pairs;
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
            const T::Bits* at = head + (static_cast<long long>(pair + i) << args.interleaved);
            bool there = pair + i < args.pairs;
            a[i] = there ? T::widen(at[0]) : 0.0f;
            b[i] = there ? T::widen(at[second]) : 0.0f;
        }
    }
}

// Adds the gradients of the angles of `heads` heads from `first` on.
template <bool PACKS>
__device__ void add_angles(const RopeGradArgs& args, const TensorGradArgs& of, unsigned batch, unsigned token,
                           unsigned first, unsigned heads, unsigned pair, float (&g)[WIDE]) {
    const T::Bits* x = static_cast<const T::Bits*>(of.x) + batch * of.x_strides[0] + token * of.x_strides[1] +
                       first * of.x_strides[2] + args.offset;
    const T::Bits* grad = static_cast<const T::Bits*>(of.grad) + batch * of.grad_strides[0] +
                          token * of.grad_strides[1] + first * of.grad_strides[2] + args.offset;
#pragma unroll 1
    for (unsigned head = 0; head < heads; ++head) {
        float a[WIDE], b[WIDE], da[WIDE], db[WIDE];
        load_pairs<PACKS>(args, x, pair, a, b);
        load_pairs<PACKS>(args, grad, pair, da, db);
#pragma unroll
        for (int i = 0; i < WIDE; ++i) g[i] += fmaf(a[i], db[i], -(b[i] * da[i]));
        x += of.x_strides[2];
        grad += of.grad_strides[2];
    }
}

// blocks   x: chunks of tokens, y: sets, z: passes of four axes
// threads  x: lanes of the pairs, y: ROWS tokens side by side
template <bool PACKS> __device__ void frequency_grad(const RopeGradArgs& args) {
    __shared__ float sums[ROWS][32 * WIDE];
    wait_for_predecessor();
    unsigned set = blockIdx.y, first_axis = blockIdx.z * AXES, axes = min(AXES, args.axis_count - first_axis);
    unsigned begin = blockIdx.x * args.chunk, end = min(begin + args.chunk, args.rows);
    float* parts = static_cast<float*>(args.chunks > 1 ? args.parts : args.out);
    for (unsigned pairs = 0; pairs < args.pairs; pairs += blockDim.x * WIDE) {
        unsigned pair = pairs + threadIdx.x * WIDE;
        bool there = pair < args.pairs;
        float sum[AXES][WIDE] = {};
#pragma unroll 1
        for (unsigned row = begin + threadIdx.y; there && row < end; row += ROWS) {
            unsigned batch = divide(row, args.by_tokens), token = row - batch * args.tokens;
            float g[WIDE] = {};
            add_angles<PACKS>(args, args.q, batch, token, set * args.q.sharing, args.q.sharing, pair, g);
            add_angles<PACKS>(args, args.k, batch, token, set * args.k.sharing, args.k.sharing, pair, g);
            Position position(args.at, batch, token);
#pragma unroll
            for (unsigned axis = 0; axis < AXES; ++axis) {
                if (axis >= axes) break;
                float at = static_cast<float>(static_cast<long long>(position.on(args.at, first_axis + axis)));
#pragma unroll
                for (int i = 0; i < WIDE; ++i) sum[axis][i] = fmaf(at, g[i], sum[axis][i]);
            }
        }
#pragma unroll
        for (unsigned axis = 0; axis < AXES; ++axis) {
            if (axis >= axes) break;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < WIDE; ++i) sums[threadIdx.y][i * 32 + threadIdx.x] = sum[axis][i];
            __syncthreads();
            float unit = static_cast<const float*>(args.units)[first_axis + axis];
            long long at = (static_cast<long long>(blockIdx.x) * args.axis_count + first_axis + axis) * args.sets + set;
            float* out = parts + at * args.pairs + pairs;
            // Threads of all rows share the pairs of the step.
            for (unsigned i = threadIdx.y * blockDim.x + threadIdx.x; i < blockDim.x * WIDE && pairs + i < args.pairs;
                 i += ROWS * blockDim.x) {
                unsigned place = i % WIDE * 32 + i / WIDE;
                float all = 0.0f;
#pragma unroll
                for (unsigned row = 0; row < ROWS; ++row) all += sums[row][place];
                // A power of two.
                out[i] = all * unit;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) KERNEL(frequency_grad_wide) { frequency_grad<true>(args); }
extern "C" __global__ void __launch_bounds__(256) KERNEL(frequency_grad_one) { frequency_grad<false>(args); }

// Adds the chunks in their order; a thread has one frequency.
extern "C" __global__ void __launch_bounds__(256) KERNEL(frequency_grad_sum) {
    wait_for_predecessor();
    unsigned count = args.axis_count * args.sets * args.pairs, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float* parts = static_cast<const float*>(args.parts) + i;
    float sum = 0.0f;
    unsigned chunk = 0;
#pragma unroll 1
    for (; chunk + 8 <= args.chunks; chunk += 8) {
        float next[8];
#pragma unroll
        for (unsigned j = 0; j < 8; ++j) next[j] = parts[static_cast<long long>(chunk + j) * count];
#pragma unroll
        for (unsigned j = 0; j < 8; ++j) sum += next[j];
    }
#pragma unroll 1
    for (; chunk < args.chunks; ++chunk) sum += parts[static_cast<long long>(chunk) * count];
    static_cast<float*>(args.out)[i] = sum;
}

// A warp for each token, `AXES` axes in each pass. Its lanes share heads and pairs, WIDE pairs of one head at a time.
//
// blocks   x: tokens, y: passes of four axes
template <bool PACKS> __device__ void position_grad(const RopeGradArgs& args) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) return;
    wait_for_predecessor();
    unsigned first_axis = blockIdx.y * AXES, axes = min(AXES, args.axis_count - first_axis);
    unsigned batch = divide(row, args.by_tokens), token = row - batch * args.tokens;
    float sum[AXES] = {};
#pragma unroll 1
    for (int keys = 0; keys < 2; ++keys) {
        const TensorGradArgs& of = keys ? args.k : args.q;
#pragma unroll 1
        for (unsigned i = threadIdx.x % 32; i < of.heads * args.groups; i += 32) {
            unsigned head = divide(i, args.by_groups), pair = (i - head * args.groups) * WIDE;
            unsigned set = divide(head, of.by_sharing);
            float g[WIDE] = {};
            add_angles<PACKS>(args, of, batch, token, head, 1, pair, g);
            const float* frequencies = static_cast<const float*>(args.frequencies);
#pragma unroll
            for (unsigned axis = 0; axis < AXES; ++axis) {
                if (axis >= axes) break;
                long long at = (static_cast<long long>(first_axis + axis) * args.sets + set) * args.pairs + pair;
#pragma unroll
                for (int j = 0; j < WIDE; ++j) {
                    if (pair + j < args.pairs) sum[axis] = fmaf(frequencies[at + j], g[j], sum[axis]);
                }
            }
        }
    }
#pragma unroll
    for (unsigned axis = 0; axis < AXES; ++axis) {
        if (axis >= axes) break;
        float all = warp_sum(sum[axis]);
        if (threadIdx.x % 32 == 0) {
            static_cast<float*>(args.out)[static_cast<long long>(first_axis + axis) * args.rows + row] = all;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) KERNEL(position_grad_wide) { position_grad<true>(args); }
extern "C" __global__ void __launch_bounds__(128) KERNEL(position_grad_one) { position_grad<false>(args); }
