// z = softcap(scale * x) + bias + mask          in the order that `law` names
// y = exp(z - lse),  lse = ln(sum over keys of exp(z) + exp(sink))
//
// x, y     [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; in place or apart
// mask     the same with strides of its own, 0 where it is shared
// sinks    f32 [heads]
// lse      f32 [batch, heads, queries]
//
// `softmax_warp`: a warp a row of up to 1024 keys. `softmax_block`: 256 threads a row. A thread takes eight keys at a time;
// logits, then their exponentials, wait in shared memory, 4 bytes a key. Bytes: each logit that is not masked is read once
// and each probability written once, for rows whose chunks fit there (`held` chunks of 32 KiB: 6 on an H100, 49152 keys).
// Longer rows are read twice, by one block, or, where rows are few, by a block for each chunk in two launches, `mode` 1 and
// 2. All of them give the same bits: the order of every sum is that of reduce.cuh.
#include "bias/row.cuh"
#include "bias/reduce.cuh"

// From eight logits and their biases to what is exponentiated, the mask still missing: x becomes z.
__device__ __forceinline__ void logits_of(const SoftmaxLaw& law, const float (&bias)[KEYS], float (&x)[KEYS]) {
    bool late = law.cap != 0.0f && law.order == 0;
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
        x[i] = law.order == 2 ? (x[i] + bias[i]) * law.scale : fmaf(x[i], law.scale, late ? 0.0f : bias[i]);
    }
    if (law.cap != 0.0f) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            x[i] = law.cap * tanh_fixed(x[i] * law.inverse_cap);
            if (late) x[i] += bias[i];
        }
    }
}

struct Logits {
    Row row;
    RowBias bias;
    const T::Bits* x;
    T::Bits* y;
    const T::Bits* mask;
    // keys that may be seen: all of these when keys follow one another, else only those inside the window
    int low, high;

    __device__ Logits(const SoftmaxArgs& args, unsigned index) : row(args.bias, index), bias(args.bias, row) {
        x = static_cast<const T::Bits*>(args.x) + row.offset(args.x_strides);
        y = static_cast<T::Bits*>(args.y) + row.offset(args.y_strides);
        mask = static_cast<const T::Bits*>(args.mask);
        if (mask) mask += row.offset(args.mask_strides);
        low = 0;
        high = row.keys;
        if (!row.key_positions) {
            // The key at the query's own position; positions lie within 2^30, so that 64 bits hold every sum.
            long long own = static_cast<long long>(row.at) - row.key_start;
            if (args.law.left != 0x7fffffff) low = static_cast<int>(max(0ll, min(own - args.law.left, static_cast<long long>(high))));
            if (args.law.right != 0x7fffffff) high = static_cast<int>(max(0ll, min(own + args.law.right + 1, static_cast<long long>(high))));
        }
    }

    // z of eight keys from `key` on; -inf where a key is masked or there is none.
    __device__ void load(const SoftmaxArgs& args, int key, float (&z)[KEYS]) const {
        if (key >= high || key + KEYS <= low) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) z[i] = -infinity();
            return;
        }
        int count = min(KEYS, static_cast<int>(args.bias.keys) - key);
        float value[KEYS];
        load_keys(x + key, count, args.aligned, 0.0f, z);
        bias.of(args.bias, row, key, count, value);
        logits_of(args.law, value, z);
        if (mask) {
            load_keys(mask + key, count, args.aligned == 2, 0.0f, value);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) z[i] += value[i];
        }
#pragma unroll
        for (int i = 0; i < KEYS; ++i) {
            bool seen = key + i >= low && key + i < high;
            if (row.key_positions && seen) {
                int distance = row.distance(key + i);
                seen = (args.law.left == 0x7fffffff || distance >= -args.law.left) &&
                       (args.law.right == 0x7fffffff || distance <= args.law.right);
            }
            if (!seen) z[i] = -infinity();
        }
    }

    __device__ void store(const SoftmaxArgs& args, int key, const float (&e)[KEYS], float factor) const {
        int count = min(KEYS, static_cast<int>(args.bias.keys) - key);
        if (count <= 0) return;
        float p[KEYS];
#pragma unroll
        for (int i = 0; i < KEYS; ++i) p[i] = e[i] * factor;
        store_keys(y + key, count, args.aligned, p);
    }
};

// A thread's keys of one chunk.
template <int THREADS> __device__ int key_of(int chunk, int pack) {
    return chunk * CHUNK + (pack * THREADS + static_cast<int>(Group<THREADS>::lane())) * KEYS;
}

// Leaves the exponentials of a chunk in `stage`.
template <int THREADS>
__device__ Part make(const SoftmaxArgs& args, const Logits& logits, Group<THREADS>& group, const Stage<THREADS>& stage,
                     int chunk) {
    float most = -infinity();
    float x[KEYS];
#pragma unroll 1
    for (int i = 0; i < PACKS; ++i) {
        logits.load(args, key_of<THREADS>(chunk, i), x);
        most = fmaxf(most, max_pack(x));
        stage.put(i, x);
    }
    most = group.max(most);
    // Without keys any number will do: -inf minus it is -inf.
    float from = most == -infinity() ? 0.0f : most;
    LaneSum<THREADS> sum;
#pragma unroll 1
    for (int i = 0; i < PACKS; ++i) {
        stage.get(i, x);
#pragma unroll
        for (int j = 0; j < KEYS; ++j) x[j] = exp_below_zero(x[j] - from);
        sum.add(i, sum_pack(x));
        stage.put(i, x);
    }
    return {from, group.sum(sum)};
}

template <int THREADS>
__device__ void store(const SoftmaxArgs& args, const Logits& logits, const Stage<THREADS>& stage, int chunk, float factor) {
    float x[KEYS];
#pragma unroll 1
    for (int i = 0; i < PACKS; ++i) {
        int key = key_of<THREADS>(chunk, i);
        if (key >= static_cast<int>(args.bias.keys)) return;
        stage.get(i, x);
        logits.store(args, key, x, factor);
    }
}

// What a row's parts are added to.
__device__ Part start(const SoftmaxArgs& args, const Row& row) {
    const float* sinks = static_cast<const float*>(args.sinks);
    float sink = sinks && row.any ? sinks[row.head] : -infinity();
    return {sink, sink == -infinity() ? 0.0f : 1.0f};
}

// What the exponentials of a part are multiplied by; 0 in a row without keys.
__device__ float factor(const Part& whole, float part_max, float inverse) {
    return whole.sum == 0.0f ? 0.0f : exp_below_zero(part_max - whole.max) * inverse;
}

__device__ float inverse(const Part& whole) { return 1.0f / whole.sum; }

__device__ void store_lse(const SoftmaxArgs& args, unsigned row, const Part& whole) {
    if (args.lse) static_cast<float*>(args.lse)[row] = whole.sum == 0.0f ? -infinity() : whole.max + log_normal(whole.sum);
}

extern __shared__ float4 shared[];

extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(softmax_warp)(const SoftmaxArgs args) {
    unsigned index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.rows) return;
    wait_for_predecessor();
    Logits logits(args, index);
    Part whole = start(args, logits.row);
    Group<32> group;
    // 4 KiB a warp
    Stage<32> stage{shared + Group<32>::number() * (PACKS * 2 * 32)};
    Part part = make<32>(args, logits, group, stage, 0);
    whole.add(part);
    store<32>(args, logits, stage, 0, factor(whole, part.max, inverse(whole)));
    if (Group<32>::lane() == 0) store_lse(args, index, whole);
}

// mode 0: one block a row, which is read twice if its chunks are more than `held`.
// mode 1: one block a chunk, blockIdx.x = row * chunks + chunk; it writes the chunk's part.
// mode 2: the same blocks add the row's parts and write their chunk.
extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(softmax_block)(const SoftmaxArgs args) {
    __shared__ BlockSpace space;
    // The largest logit of each chunk that is held; a launch holds 8 at most.
    __shared__ float largest[8];
    wait_for_predecessor();
    Group<256> group{space};
    int chunks = args.chunks;
    int held = args.held;
    unsigned index = args.mode ? blockIdx.x / args.chunks : blockIdx.x;
    int own = args.mode ? static_cast<int>(blockIdx.x - index * args.chunks) : 0;
    Logits logits(args, index);
    Part whole = start(args, logits.row);
    if (args.mode == 2) {
        // Every thread adds them all, in their order: a few dozen numbers from a cache, and no barrier.
        const float2* parts = static_cast<const float2*>(args.parts) + static_cast<long long>(index) * chunks;
        for (int i = 0; i < chunks; ++i) whole.add({parts[i].x, parts[i].y});
    }
    bool again = chunks > held;
    int steps = args.mode == 0 ? 2 * chunks : 1;
    Part part = {0.0f, 0.0f};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        // The first pass sums, the second writes.
        bool sums = args.mode == 0 && i < chunks;
        if (args.mode == 0) own = sums ? i : i - chunks;
        Stage<256> stage{shared + (again ? 0 : own * (PACKS * 2 * 256))};
        if (args.mode || sums || again) {
            part = make<256>(args, logits, group, stage, own);
            if (!again && threadIdx.x == 0) largest[own] = part.max;
        } else {
            // Written before the last barrier of the first pass, or by this thread's block in the same step.
            if (i == chunks) __syncthreads();
            part.max = largest[own];
        }
        if (sums) {
            whole.add(part);
        } else if (args.mode == 1) {
            if (threadIdx.x == 0) static_cast<float2*>(args.parts)[blockIdx.x] = make_float2(part.max, part.sum);
        } else {
            store<256>(args, logits, stage, own, factor(whole, part.max, inverse(whole)));
        }
    }
    if (args.mode != 1 && threadIdx.x == 0 && (args.mode == 0 || own == 0)) store_lse(args, index, whole);
}
