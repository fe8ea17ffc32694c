// The gradient of a norm behind gathered rows:  dv = (g - mean(g) - y mean(g y)) / sigma  with g = grad * gain and
// y = (v - mean) / sigma, for each row; and partial sums of grad * y and of grad over the rows of each block.
//
// grad, x       [batch, tokens, dim] by strides in elements (64 bits), channels contiguous; x is written
// partials      [blocks, 2, dim] f32, written; then [blocks * rows, 2, dim], room for the sums of each row of threads
// where
//               they are not held
// the others    as in learned.cu: the sum is gathered again, nothing is kept from the forward kernel
//
// The number of blocks depends on the shape alone, and each walks its own rows in order, so every device adds in one
// order.
//
// Bytes: what learned.cu reads, and grad; one row written. A row's v and g and its partial sums stay in shared memory;
// where accesses are narrow or the row is too long for it, the row is gathered four times and grad read twice, from a
// cache.
#include "embed/gather.cuh"

// f(grad, x, rows, dim) for every token of a block's row of threads: its rows, its channels (0 behind the last token).
template <class F> __device__ void each_token(const LearnedArgs& args, F f) {
    unsigned groups = (args.tokens + blockDim.y - 1) / blockDim.y;
    unsigned group = blockIdx.x * (args.tokens_per_block / blockDim.y);
    unsigned batch = group / groups, first = group % groups * blockDim.y, rest = args.tokens_per_block;
    wait_for_predecessor();
#pragma unroll 1
    for (; rest > 0 && batch < args.batch; ++batch) {
        unsigned end = min(first + rest, groups * blockDim.y);
        rest -= end - first;
        each_group(args, batch, first, end, [&](unsigned first, Before& before) {
            // Behind the last token the last one again, of which no channel is written.
            unsigned token = min(first + threadIdx.y, args.tokens - 1);
            long long at = batch * args.strides[0] + token * args.strides[1];
            Rows rows(args, static_cast<const T::Bits*>(args.source) + at, batch, first, token, before);
            f(pinned(static_cast<const T::Bits*>(args.grad) + at), pinned(static_cast<T::Bits*>(args.x) + at), rows,
              token == first + threadIdx.y ? args.dim : 0);
        });
        first = 0;
    }
}

// The sums of g and of g y over a row, then c and d of dv = g / sigma + d v + c.
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
    __device__ void finish(const LearnedArgs& args, const Moments& moments) {
        sum_row(parts);
        float factor = -args.share * moments.inverse;
        parts[0] = args.norm == NormKind::RMS ? 0.0f : parts[0] * factor;
        parts[1] *= factor * moments.inverse;
        parts[0] = fmaf(-moments.mean, parts[1], parts[0]);
    }
};

// A step of grad becomes one of g.
template <int W> __device__ void multiply_gain(const LearnedArgs& args, unsigned channel, float (&grad)[STEP<W>]) {
    if (!args.gain) return;
    float gain[STEP<W>];
    load_step<W>(static_cast<const T::Bits*>(args.gain), channel, args.dim, gain);
#pragma unroll
    for (int i = 0; i < STEP<W>; ++i) grad[i] = grad[i] * gain[i];
}

// v becomes y.
template <int N> __device__ void normalise(const Moments& moments, float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = (v[i] - moments.mean) * moments.inverse;
}

// v becomes dv.
template <int N> __device__ void differentiate(const Moments& moments, const Means& means, const float (&g)[N],
                                               float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf(g[i], moments.inverse, fmaf(v[i], means.parts[1], means.parts[0]));
}

// The sums of grad * y and of grad over the rows of a block, in order, from `sum(row, vector, channel)`.
template <class F> __device__ void write_sums(const LearnedArgs& args, F sum) {
    __syncthreads();
    float* out = static_cast<float*>(args.partials) + blockIdx.x * 2ll * args.dim;
#pragma unroll 1
    for (unsigned i = threadIdx.y * blockDim.x + threadIdx.x; i < 2 * args.dim; i += blockDim.x * blockDim.y) {
        unsigned vector = i < args.dim ? 0 : 1;
        float all = 0.0f;
#pragma unroll 1
        for (unsigned row = 0; row < blockDim.y; ++row) all += sum(row, vector, i - vector * args.dim);
        out[i] = all;
    }
}

// A row's arrays: v; g; the sums of grad * y and of grad.
__device__ void wide(const LearnedArgs& args) {
    using Held = HeldRow<4>;
    // 1 if an array's place has a second half beside a unit of T.
    constexpr int HALF = WIDE == UNIT ? 1 : 0;
    Held held(args.dim);
    held.each(args.dim, [&](unsigned, unsigned at) {
        float zero[UNIT] = {};
        Held::store<2>(at, zero);
        Held::store<3>(at, zero);
    });
    each_token(args, [&](const T::Bits* from, T::Bits* x, const Rows& rows, unsigned dim) {
        // All of the row is on its way before any of it is used: what is read goes to the places of v and of g. A half
        // type has room for three tables there, f32 for one.
        held.each(dim, [&](unsigned channel, unsigned at) {
            if (rows.token) {
                Held::fetch_raw<0>(at, rows.token, channel, args.dim);
                if (HALF && rows.position) Held::fetch_raw<0, HALF>(at, rows.position, channel, args.dim);
                if (HALF && rows.type) Held::fetch_raw<1, HALF>(at, rows.type, channel, args.dim);
            }
            Held::fetch_raw<1>(at, from, channel, args.dim);
        });
        fetched();
        Moments moments = hold_row(args, rows, dim, held, [&](unsigned channel, unsigned at, float (&v)[UNIT]) {
            RawStep<WIDE> raw[3];
            if (!HALF && rows.position) raw[1].load(rows.position, channel, args.dim);
            if (!HALF && rows.type) raw[2].load(rows.type, channel, args.dim);
            Held::load_raw<0>(at, channel, args.dim, raw[0]);
            if (HALF && rows.position) Held::load_raw<0, HALF>(at, channel, args.dim, raw[1]);
            if (HALF && rows.type) Held::load_raw<1, HALF>(at, channel, args.dim, raw[2]);
            rows.sum(args, raw, v);
        });
        Means means;
        held.each(dim, [&](unsigned channel, unsigned at) {
            float y[UNIT], grad[UNIT], sum[UNIT];
            RawStep<WIDE> raw;
            Held::load_raw<1>(at, channel, args.dim, raw);
            raw.open(grad);
            Held::load<0>(at, y);
            normalise(moments, y);
            Held::load<2>(at, sum);
#pragma unroll
            for (int i = 0; i < UNIT; ++i) sum[i] = fmaf(grad[i], y[i], sum[i]);
            Held::store<2>(at, sum);
            Held::load<3>(at, sum);
#pragma unroll
            for (int i = 0; i < UNIT; ++i) sum[i] += grad[i];
            Held::store<3>(at, sum);
            // In place: a copy beside it would be made for every step.
            multiply_gain<WIDE>(args, channel, grad);
            Held::store<1>(at, grad);
            means.gather(grad, y);
        });
        means.finish(args, moments);
        held.each(dim, [&](unsigned channel, unsigned at) {
            float v[UNIT], g[UNIT];
            Held::load<0>(at, v);
            Held::load<1>(at, g);
            differentiate(moments, means, g, v);
            store_step<WIDE>(x, channel, args.dim, v);
        });
    });
    write_sums(args, [&](unsigned row, unsigned vector, unsigned channel) {
        return Held::one(args.dim, row, 2 + vector, channel);
    });
}

__device__ void narrow(const LearnedArgs& args) {
    float* room = static_cast<float*>(args.partials) +
                  (gridDim.x + static_cast<long long>(blockIdx.x) * blockDim.y) * 2 * args.dim;
    float* gain_sums = room + threadIdx.y * 2ll * args.dim;
    float* bias_sums = gain_sums + args.dim;
    // The sums of an earlier call may still be read.
    wait_for_predecessor();
    each_channel(args.dim, false, [&](unsigned channel) { gain_sums[channel] = bias_sums[channel] = 0.0f; });
    each_token(args, [&](const T::Bits* from, T::Bits* x, const Rows& rows, unsigned dim) {
        Moments moments;
        Means means;
#pragma unroll 1
        for (int pass = first_pass(args); pass < 4; ++pass) {
            each_channel(dim, false, [&](unsigned channel) {
                float v[1], grad[1];
                rows.fill(v);
                if (rows.token) rows.sum<1>(args, channel, v);
                if (pass < 2) {
                    moments.gather<1>(args, pass, channel, v);
                    return;
                }
                load_step<1>(from, channel, args.dim, grad);
                if (pass == 2) {
                    normalise(moments, v);
                    gain_sums[channel] = fmaf(grad[0], v[0], gain_sums[channel]);
                    bias_sums[channel] += grad[0];
                }
                multiply_gain<1>(args, channel, grad);
                if (pass == 2) {
                    means.gather(grad, v);
                } else {
                    differentiate(moments, means, grad, v);
                    store_step<1>(x, channel, args.dim, v);
                }
            });
            if (pass < 2) {
                moments.finish(args, pass);
            } else if (pass == 2) {
                means.finish(args, moments);
            }
        }
    });
    write_sums(args, [&](unsigned row, unsigned vector, unsigned channel) {
        return room[(2ll * row + vector) * args.dim + channel];
    });
}

#define NORM_GRAD(name, f) \
    extern "C" __global__ void __launch_bounds__(256, 3) KERNEL(name) { f(args); }

NORM_GRAD(norm_grad_wide, wide)
NORM_GRAD(norm_grad_narrow, narrow)
