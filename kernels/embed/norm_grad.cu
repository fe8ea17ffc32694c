// The gradient of a norm behind gathered rows:  dv = (g - mean(g) - y mean(g y)) / sigma  with g = grad * gain and
// y = (v - mean) / sigma, for each row; and partial sums of grad * y and of grad over the rows of each block.
//
// grad, x       [batch, tokens, dim] by strides in elements (64 bits), channels contiguous; x is written
// partials      [blocks, 2, dim] f32, written; then room for the sums of each row of threads, where they are not held
// the others    as in learned.cu: the sum is gathered again, nothing is kept from the forward kernel
//
// The number of blocks depends on the shape alone, and each walks its rows in order, so every device adds in one order.
//
// Bytes: what learned.cu reads, and grad; one row written. A row's y and g and its partial sums stay in shared memory; where
// accesses are narrow or the row is too long for it, the row is gathered four times and grad read twice, from a cache.
#include "embed/gather.cuh"

// The sums of a block's rows of threads, of grad * y and of grad: in shared memory behind what its rows hold, or in
// `partials`.
struct Sums {
    float4* at;
    unsigned units;

    __device__ Sums(const LearnedArgs& args, bool held) {
        Units first = own_row(args, 0);
        units = first.units;
        float4* room = static_cast<float4*>(args.partials) + (gridDim.x * 2ll * args.dim + 3) / 4;
        at = held ? first.at + blockDim.y * 4 * units : room + blockIdx.x * blockDim.y * 4ll * units;
    }
    // 0: of grad * y, 1: of grad
    __device__ Units of(unsigned row, unsigned which) const { return {at + (2 * row + which) * 2 * units, units}; }

    template <int W> __device__ void clear(unsigned dim) const {
        each_step<W>(dim, false, [&](unsigned channel) {
            float zero[STEP<W>] = {};
            of(threadIdx.y, 0).store(channel, zero);
            of(threadIdx.y, 1).store(channel, zero);
        });
    }
    template <int W> __device__ void add(unsigned channel, const float (&grad)[STEP<W>], const float (&y)[STEP<W>]) const {
        float sum[STEP<W>];
        of(threadIdx.y, 0).load(channel, sum);
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) sum[i] = fmaf(grad[i], y[i], sum[i]);
        of(threadIdx.y, 0).store(channel, sum);
        of(threadIdx.y, 1).load(channel, sum);
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) sum[i] += grad[i];
        of(threadIdx.y, 1).store(channel, sum);
    }
    // The block's sums, of its rows in order.
    __device__ void write(const LearnedArgs& args) const {
        __syncthreads();
        float* out = static_cast<float*>(args.partials) + blockIdx.x * 2ll * args.dim;
#pragma unroll 1
        for (unsigned i = threadIdx.y * blockDim.x + threadIdx.x; i < 2 * args.dim; i += blockDim.x * blockDim.y) {
            unsigned which = i < args.dim ? 0 : 1;
            float sum = 0.0f;
#pragma unroll 1
            for (unsigned row = 0; row < blockDim.y; ++row) sum += of(row, which).one(i - which * args.dim);
            out[i] = sum;
        }
    }
};

// f(at, rows, dim) for every token of a block's row of threads: its place in the embeddings, its rows, its channels (0
// behind the last token).
template <class F> __device__ void each_token(const LearnedArgs& args, F f) {
    unsigned groups = (args.tokens + blockDim.y - 1) / blockDim.y;
    unsigned batch = 0;
#pragma unroll 1
    for (unsigned group = blockIdx.x;; group += gridDim.x) {
        batch += group / groups;
        group %= groups;
        if (batch >= args.batch) break;
        unsigned first = group * blockDim.y;
        unsigned token = first + threadIdx.y;
        long long at = batch * args.strides[0] + token * args.strides[1];
        f(at, Rows(args, static_cast<const T::Bits*>(args.source) + at, batch, first, token), token < args.tokens ? args.dim : 0);
    }
}

// The means of g and of g y over a row.
struct Means {
    float parts[2] = {};

    template <int N> __device__ void gather(const float (&g)[N], const float (&y)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            parts[0] += g[i];
            parts[1] = fmaf(g[i], y[i], parts[1]);
        }
    }
    // Every thread of the block must come here.
    __device__ void finish(const LearnedArgs& args) {
        sum_row(parts);
        parts[0] = args.norm == RMS_NORM ? 0.0f : parts[0] * args.share;
        parts[1] *= args.share;
    }
};

// A step of grad, and of g.
template <int W> __device__ void load_grad(const LearnedArgs& args, long long at, unsigned channel, float (&grad)[STEP<W>], float (&g)[STEP<W>]) {
    load_step<W>(static_cast<const T::Bits*>(args.grad) + at, channel, args.dim, grad);
#pragma unroll
    for (int i = 0; i < STEP<W>; ++i) g[i] = grad[i];
    if (args.gain) {
        float gain[STEP<W>];
        load_step<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, gain);
#pragma unroll
        for (int i = 0; i < STEP<W>; ++i) g[i] = g[i] * gain[i];
    }
}

// v becomes y.
template <int N> __device__ void normalise(const Moments& moments, float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = (v[i] - moments.mean) * moments.inverse;
}

template <int W> __device__ void store_dv(const LearnedArgs& args, long long at, const Moments& moments, const Means& means, unsigned channel, const float (&g)[STEP<W>], const float (&y)[STEP<W>]) {
    float dv[STEP<W>];
#pragma unroll
    for (int i = 0; i < STEP<W>; ++i) dv[i] = fmaf(-y[i], means.parts[1], g[i] - means.parts[0]) * moments.inverse;
    store_step<W>(static_cast<T::Bits*>(args.x) + at, channel, args.dim, dv);
}

__device__ void wide(const LearnedArgs& args) {
    Units held = own_row(args, 2), held_g = {held.at + 2 * held.units, held.units};
    Sums sums(args, args.sums_held);
    // The sums of an earlier call may still be read.
    wait_for_predecessor();
    sums.clear<WIDE>(args.dim);
    each_token(args, [&](long long at, const Rows& rows, unsigned dim) {
        Moments moments = hold_row(args, rows, dim, held);
        Means means;
        each_step<WIDE>(dim, false, [&](unsigned channel) {
            float y[UNIT], grad[UNIT], g[UNIT];
            held.load(channel, y);
            normalise(moments, y);
            load_grad<WIDE>(args, at, channel, grad, g);
            sums.add<WIDE>(channel, grad, y);
            means.gather(g, y);
            held.store(channel, y);
            held_g.store(channel, g);
        });
        means.finish(args);
        each_step<WIDE>(dim, false, [&](unsigned channel) {
            float y[UNIT], g[UNIT];
            held.load(channel, y);
            held_g.load(channel, g);
            store_dv<WIDE>(args, at, moments, means, channel, g, y);
        });
    });
    sums.write(args);
}

__device__ void narrow(const LearnedArgs& args) {
    Sums sums(args, false);
    wait_for_predecessor();
    sums.clear<1>(args.dim);
    each_token(args, [&](long long at, const Rows& rows, unsigned dim) {
        Moments moments;
        Means means;
#pragma unroll 1
        for (int pass = first_pass(args); pass < 4; ++pass) {
            each_step<1>(dim, false, [&](unsigned channel) {
                float y[1], grad[1], g[1];
                rows.sum<1>(args, channel, y);
                if (pass < 2) {
                    moments.gather<1>(args, pass, channel, y);
                    return;
                }
                normalise(moments, y);
                load_grad<1>(args, at, channel, grad, g);
                if (pass == 2) {
                    sums.add<1>(channel, grad, y);
                    means.gather(g, y);
                } else {
                    store_dv<1>(args, at, moments, means, channel, g, y);
                }
            });
            if (pass < 2) {
                moments.finish(args, pass);
            } else if (pass == 2) {
                means.finish(args);
            }
        }
    });
    sums.write(args);
}

#define NORM_GRAD(name, f)     extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(name)(const LearnedArgs args) { f(args); }

NORM_GRAD(norm_grad_wide, wide)
NORM_GRAD(norm_grad_narrow, narrow)
