// dz = p * (dp - dot),  dot = sum over keys of p * dp
// dx = dz * scale * (1 - tanh^2),  dbias = dz * what the order of scale, softcap and bias leaves
// dsink[h] = -sum over rows of exp(sink - lse) * dot
//
// p, dp, x, dx, dbias   [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; dx may be dp
// dots                  f32 [batch, heads, queries]
//
// `grad_warp`: a warp a row of up to 1024 keys. `grad_block`: 256 threads a row. A thread takes eight keys at a time; p and
// dp wait in shared memory between the sum and its use, 8 bytes a key. Bytes: p and dp are read once, dx is written once,
// for rows whose chunks fit there (`held` chunks of 64 KiB: 3 on an H100, 24576 keys); twice the reads for longer ones. Sums
// are in the order of reduce.cuh. With a softcap the logits x and the bias are read too.
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

template <int THREADS> __device__ int key_of(int chunk, int pack) {
    return chunk * CHUNK + (pack * THREADS + static_cast<int>(Group<THREADS>::lane())) * KEYS;
}

// The sum of p * dp over a chunk; leaves both in the stages.
template <int THREADS>
__device__ float dot_of(const SoftmaxGradArgs& args, const Grads& grads, Group<THREADS>& group, const Stage<THREADS>& p_stage,
                        const Stage<THREADS>& dp_stage, int chunk) {
    LaneSum<THREADS> sum;
    float p[KEYS], dp[KEYS];
#pragma unroll 1
    for (int i = 0; i < PACKS; ++i) {
        int at = key_of<THREADS>(chunk, i);
        int count = max(0, min(KEYS, grads.row.keys - at));
        load_keys(grads.p + at, count, args.aligned, 0.0f, p);
        load_keys(grads.dp + at, count, args.aligned, 0.0f, dp);
        p_stage.put(i, p);
        dp_stage.put(i, dp);
        // A key without weight may hold anything in dp.
#pragma unroll
        for (int j = 0; j < KEYS; ++j) dp[j] = p[j] == 0.0f ? 0.0f : p[j] * dp[j];
        sum.add(i, sum_pack(dp));
    }
    return group.sum(sum);
}

template <int THREADS>
__device__ void store(const SoftmaxGradArgs& args, const Grads& grads, const Stage<THREADS>& p_stage,
                      const Stage<THREADS>& dp_stage, int chunk, float dot) {
    const SoftmaxLaw& law = args.law;
    float p[KEYS], dx[KEYS], dbias[KEYS];
#pragma unroll 1
    for (int i = 0; i < PACKS; ++i) {
        int at = key_of<THREADS>(chunk, i);
        int count = min(KEYS, static_cast<int>(args.bias.keys) - at);
        if (count <= 0) return;
        p_stage.get(i, p);
        dp_stage.get(i, dx);
#pragma unroll
        for (int j = 0; j < KEYS; ++j) dbias[j] = p[j] == 0.0f ? 0.0f : p[j] * (dx[j] - dot);
        if (law.cap != 0.0f) {
            float x[KEYS], bias[KEYS];
            const T::Bits* logits = static_cast<const T::Bits*>(args.x) + grads.row.offset(args.x_strides);
            load_keys(logits + at, count, args.aligned, 0.0f, x);
            RowBias(args.bias, grads.row).of(args.bias, grads.row, at, count, bias);
#pragma unroll
            for (int j = 0; j < KEYS; ++j) {
                float v = law.order == 2 ? (x[j] + bias[j]) * law.scale
                                         : fmaf(x[j], law.scale, law.order == 0 ? 0.0f : bias[j]);
                float t = tanh_fixed(v * law.inverse_cap);
                // A masked logit may be infinite; its dz is 0 all the same.
                float slope = dbias[j] == 0.0f ? 0.0f : dbias[j] * fmaf(-t, t, 1.0f);
                dx[j] = slope * law.scale;
                if (law.order == 1) dbias[j] = slope;
            }
        } else {
#pragma unroll
            for (int j = 0; j < KEYS; ++j) dx[j] = dbias[j] * law.scale;
        }
        store_keys(grads.dx + at, count, args.aligned, dx);
        if (grads.dbias) store_keys(grads.dbias + at, count, args.aligned, law.order == 2 ? dx : dbias);
    }
}

__device__ void store_dot(const SoftmaxGradArgs& args, unsigned row, float dot) {
    if (args.dots) static_cast<float*>(args.dots)[row] = dot;
}

extern __shared__ float4 shared[];

extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(grad_warp)(const SoftmaxGradArgs args) {
    unsigned index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.rows) return;
    wait_for_predecessor();
    Grads grads(args, index);
    Group<32> group;
    // 8 KiB a warp
    constexpr int STAGE = PACKS * 2 * 32;
    Stage<32> p{shared + Group<32>::number() * 2 * STAGE}, dp{p.at + STAGE};
    float dot = dot_of<32>(args, grads, group, p, dp, 0);
    store<32>(args, grads, p, dp, 0, dot);
    if (Group<32>::lane() == 0) store_dot(args, index, dot);
}

extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(grad_block)(const SoftmaxGradArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    Grads grads(args, blockIdx.x);
    Group<256> group{space};
    constexpr int STAGE = PACKS * 2 * 256;
    float dot = 0.0f;
    int chunks = args.chunks;
    bool again = args.chunks > args.held;
#pragma unroll 1
    for (int i = 0; i < 2 * chunks; ++i) {
        // The first pass sums, the second writes.
        bool first = i < chunks;
        int own = first ? i : i - chunks;
        Stage<256> p{shared + (again ? 0 : own * 2 * STAGE)}, dp{p.at + STAGE};
        if (first || again) {
            // Two sums use one space: every thread has read the last one.
            __syncthreads();
            float part = dot_of<256>(args, grads, group, p, dp, own);
            if (first) dot += part;
        }
        if (!first) store<256>(args, grads, p, dp, own, dot);
    }
    if (threadIdx.x == 0) store_dot(args, blockIdx.x, dot);
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
    Group<256> group{space};
    LaneSum<256> lane;
    lane.total = sum.total;
    float total = group.sum(lane);
    if (threadIdx.x == 0) static_cast<float*>(args.grad)[head] = total;
}
