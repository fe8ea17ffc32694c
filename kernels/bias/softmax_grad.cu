// dz = p * (dp - dot),  dot = sum over keys of p * dp
// dx = dz * scale * (1 - tanh^2),  dbias = dz * what the order of scale, softcap and bias leaves
// dsink[h] = -sum over rows of exp(sink - lse) * dot
//
// p, dp, x, dx, dbias   [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; dx may be dp
// dots                  f32 [batch, heads, queries]
//
// A warp takes a row of up to 1024 keys, a block of 256 a longer one, eight keys a thread at a time. Bytes: p and dp are
// read once, dx is written once, for rows of up to 8192 keys; twice the reads for longer ones. Sums are in the order of
// reduce.cuh. With a softcap the logits x and the bias are read too (`grad_capped`).
#include "bias/row.cuh"
#include "bias/reduce.cuh"

struct Grads {
    Row row;
    const T::Bits* p;
    const T::Bits* dp;
    T::Bits* dx;
    T::Bits* dbias;

    __device__ Grads(const SoftmaxGradArgs& args, unsigned index) : row(args.bias, index) {
        p = static_cast<const T::Bits*>(args.p) + row.offset(args.p_strides);
        dp = static_cast<const T::Bits*>(args.dp) + row.offset(args.dp_strides);
        dx = static_cast<T::Bits*>(args.dx) + row.offset(args.dx_strides);
        dbias = static_cast<T::Bits*>(args.dbias);
        if (dbias) dbias += row.offset(args.dx_strides);
    }
};

// p and dp of one chunk.
template <int GROUP> struct Chunk {
    float p[Group<GROUP>::PACKS][KEYS], dp[Group<GROUP>::PACKS][KEYS];

    __device__ static int key(int chunk, int pack) {
        return chunk * CHUNK + (pack * GROUP + static_cast<int>(Group<GROUP>::lane())) * KEYS;
    }

    __device__ void load(const SoftmaxGradArgs& args, const Grads& grads, int chunk) {
#pragma unroll
        for (int i = 0; i < Group<GROUP>::PACKS; ++i) {
            int at = key(chunk, i);
            int count = max(0, min(KEYS, grads.row.keys - at));
            load_keys(grads.p + at, count, args.aligned, 0.0f, p[i]);
            load_keys(grads.dp + at, count, args.aligned, 0.0f, dp[i]);
        }
    }

    __device__ float dot(Group<GROUP>& group) const {
        float sums[Group<GROUP>::PACKS];
#pragma unroll
        for (int i = 0; i < Group<GROUP>::PACKS; ++i) {
            float products[KEYS];
            // A key without weight may hold anything in dp.
#pragma unroll
            for (int j = 0; j < KEYS; ++j) products[j] = p[i][j] == 0.0f ? 0.0f : p[i][j] * dp[i][j];
            sums[i] = sum_pack(products);
        }
        return group.sum(sums);
    }

    template <bool CAPPED>
    __device__ void store(const SoftmaxGradArgs& args, const Grads& grads, int chunk, float dot) const {
        const SoftmaxLaw& law = args.law;
#pragma unroll
        for (int i = 0; i < Group<GROUP>::PACKS; ++i) {
            int at = key(chunk, i);
            int count = min(KEYS, static_cast<int>(args.bias.keys) - at);
            if (count <= 0) continue;
            float dx[KEYS], dbias[KEYS];
#pragma unroll
            for (int j = 0; j < KEYS; ++j) dbias[j] = p[i][j] == 0.0f ? 0.0f : p[i][j] * (dp[i][j] - dot);
            if (CAPPED) {
                float x[KEYS], bias[KEYS];
                const T::Bits* logits = static_cast<const T::Bits*>(args.x) + grads.row.offset(args.x_strides);
                load_keys(logits + at, count, args.aligned, 0.0f, x);
                RowBias<false>(args.bias, grads.row).of(args.bias, grads.row, at, count, bias);
#pragma unroll
                for (int j = 0; j < KEYS; ++j) {
                    float v = law.order == 2 ? (x[j] + bias[j]) * law.scale
                                             : fmaf(x[j], law.scale, law.order == 0 ? 0.0f : bias[j]);
                    float t = tanh_fixed(v * law.inverse_cap);
                    // A masked logit may be infinite; its dz is 0 all the same.
                    float slope = dbias[j] == 0.0f ? 0.0f : dbias[j] * fmaf(-t, t, 1.0f);
                    dx[j] = slope * law.scale;
                    if (law.order == 1) dbias[j] = slope;
                    if (law.order == 2) dbias[j] = dx[j];
                }
            } else {
#pragma unroll
                for (int j = 0; j < KEYS; ++j) {
                    dx[j] = dbias[j] * law.scale;
                    if (law.order == 2) dbias[j] = dx[j];
                }
            }
            store_keys(grads.dx + at, count, args.aligned, dx);
            if (grads.dbias) store_keys(grads.dbias + at, count, args.aligned, dbias);
        }
    }
};

__device__ void store_dot(const SoftmaxGradArgs& args, unsigned row, float dot) {
    if (args.dots) static_cast<float*>(args.dots)[row] = dot;
}

template <int GROUP> __device__ void once(const SoftmaxGradArgs& args, unsigned index, Group<GROUP> group) {
    Grads grads(args, index);
    Chunk<GROUP> chunk;
    chunk.load(args, grads, 0);
    float dot = chunk.dot(group);
    chunk.template store<false>(args, grads, 0, dot);
    if (Group<GROUP>::lane() == 0) store_dot(args, index, dot);
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(grad_warp)(const SoftmaxGradArgs args) {
    unsigned index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.rows) return;
    wait_for_predecessor();
    once<32>(args, index, Group<32>{});
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(grad_block)(const SoftmaxGradArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    once<256>(args, blockIdx.x, Group<256>{space});
}

// Rows of any length: a row of several chunks is read twice.
template <bool CAPPED> __device__ void passes(const SoftmaxGradArgs& args, Group<256> group) {
    Grads grads(args, blockIdx.x);
    Chunk<256> chunk;
    float dot = 0.0f;
    int chunks = args.chunks;
#pragma unroll 1
    for (int i = 0; i < 2 * chunks; ++i) {
        bool first = i < chunks;
        int own = first ? i : i - chunks;
        if (first || chunks > 1) chunk.load(args, grads, own);
        if (first) {
            // Two sums use one space: every thread has read the last one.
            __syncthreads();
            dot += chunk.dot(group);
        } else {
            chunk.template store<CAPPED>(args, grads, own, dot);
        }
    }
    if (threadIdx.x == 0) store_dot(args, blockIdx.x, dot);
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(grad_long)(const SoftmaxGradArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    passes<false>(args, Group<256>{space});
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(grad_capped)(const SoftmaxGradArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    passes<true>(args, Group<256>{space});
}

// One block a head: thread t adds the rows t, t + 256, ... of every sequence, with compensation.
extern "C" __global__ void __launch_bounds__(256) ENTRY(sink_grad)(const SinkGradArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    unsigned head = blockIdx.x;
    float sink = static_cast<const float*>(args.sinks)[head];
    Sum sum;
    for (unsigned batch = 0; batch < args.batch; ++batch) {
        long long first = (static_cast<long long>(batch) * args.heads + head) * args.queries;
        for (unsigned query = threadIdx.x; query < args.queries; query += 256) {
            float lse = static_cast<const float*>(args.lse)[first + query];
            float dot = static_cast<const float*>(args.dots)[first + query];
            // The sink is one of the terms of lse, so that it is never above it but for a rounding.
            if (lse != -infinity()) sum.add(-exp_below_zero(fminf(sink - lse, 0.0f)) * dot);
        }
    }
    float packs[4] = {sum.total, 0.0f, 0.0f, 0.0f};
    Group<256> group{space};
    float total = group.sum(packs);
    if (threadIdx.x == 0) static_cast<float*>(args.grad)[head] = total;
}
