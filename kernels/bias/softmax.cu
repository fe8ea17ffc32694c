// z = softcap(scale * x) + bias + mask          in the order that `law` names
// y = exp(z - lse),  lse = ln(sum over keys of exp(z) + exp(sink))
//
// x, y     [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; in place or apart
// mask     the same with strides of its own, 0 where it is shared
// sinks    f32 [heads]
// lse      f32 [batch, heads, queries]
//
// A thread takes eight keys at a time and keeps their exponentials in registers. Bytes: each logit that is not masked is
// read once and each probability written once, for rows of up to 32768 keys:
//
//     softmax_warp   a warp a row         up to 1024 keys
//     softmax_long   256 threads a row    up to 8192 keys
//     softmax_held   512 threads a row    up to 32768 keys
//
// Longer rows are read twice by softmax_long, in two passes of one block, or, where rows are few, by a block for each 8192
// keys in two launches, `mode` 1 and 2. All of them give the same bits: the order of every sum is that of reduce.cuh.
// softmax_fire is softmax_long for FIRE.
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

template <bool FIRE = false> struct Logits {
    Row row;
    RowBias<FIRE> bias;
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

// Logits of one chunk, then their exponentials.
template <int GROUP> struct Chunk {
    float e[Group<GROUP>::PACKS][KEYS];

    __device__ static int key(int chunk, int pack) {
        return chunk * CHUNK + (pack * GROUP + static_cast<int>(Group<GROUP>::lane())) * KEYS;
    }

    template <bool FIRE>
    __device__ Part make(const SoftmaxArgs& args, const Logits<FIRE>& logits, Group<GROUP>& group, int chunk) {
        float most = -infinity();
#pragma unroll
        for (int i = 0; i < Group<GROUP>::PACKS; ++i) {
            logits.load(args, key(chunk, i), e[i]);
            most = fmaxf(most, max_pack(e[i]));
        }
        most = group.max(most);
        // Without keys any number will do: -inf minus it is -inf.
        float from = most == -infinity() ? 0.0f : most;
        float sums[Group<GROUP>::PACKS];
#pragma unroll
        for (int i = 0; i < Group<GROUP>::PACKS; ++i) {
#pragma unroll
            for (int j = 0; j < KEYS; ++j) e[i][j] = exp_below_zero(e[i][j] - from);
            sums[i] = sum_pack(e[i]);
        }
        return {from, group.sum(sums)};
    }

    template <bool FIRE>
    __device__ void store(const SoftmaxArgs& args, const Logits<FIRE>& logits, int chunk, float factor) const {
#pragma unroll
        for (int i = 0; i < Group<GROUP>::PACKS; ++i) logits.store(args, key(chunk, i), e[i], factor);
    }
};

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

// Rows of up to HELD chunks: one read, one write.
template <int GROUP, int HELD> __device__ void held(const SoftmaxArgs& args, unsigned index, Group<GROUP> group) {
    Logits<> logits(args, index);
    Part whole = start(args, logits.row);
    Chunk<GROUP> chunk[HELD];
    float max[HELD];
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        Part part = chunk[i].make(args, logits, group, i);
        max[i] = part.max;
        whole.add(part);
    }
    float scale = inverse(whole);
#pragma unroll
    for (int i = 0; i < HELD; ++i) chunk[i].store(args, logits, i, factor(whole, max[i], scale));
    if (Group<GROUP>::lane() == 0) store_lse(args, index, whole);
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(softmax_warp)(const SoftmaxArgs args) {
    unsigned index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.rows) return;
    wait_for_predecessor();
    held<32, 1>(args, index, Group<32>{});
}

extern "C" __global__ void __launch_bounds__(512, 1) ENTRY(softmax_held)(const SoftmaxArgs args) {
    __shared__ WideSpace space;
    wait_for_predecessor();
    held<512, 4>(args, blockIdx.x, Group<512>{space});
}

// mode 0: one block a row, which is read twice if it has several chunks.
// mode 1: one block a chunk, blockIdx.x = row * chunks + chunk; it writes the chunk's part.
// mode 2: the same blocks add the row's parts and write their chunk.
template <bool FIRE> __device__ void passes(const SoftmaxArgs& args, Group<256> group) {
    int chunks = args.chunks;
    unsigned index = args.mode ? blockIdx.x / args.chunks : blockIdx.x;
    int own = args.mode ? static_cast<int>(blockIdx.x - index * args.chunks) : 0;
    Logits<FIRE> logits(args, index);
    Part whole = start(args, logits.row);
    if (args.mode == 2) {
        // Every thread adds them all, in their order: a few dozen numbers from a cache, and no barrier.
        const float2* parts = static_cast<const float2*>(args.parts) + static_cast<long long>(index) * chunks;
        for (int i = 0; i < chunks; ++i) whole.add({parts[i].x, parts[i].y});
    }
    Chunk<256> chunk;
    Part part;
    int steps = args.mode == 0 ? 2 * chunks : 1;
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        // The first pass sums, the second writes; a single chunk is still in registers then.
        bool sums = args.mode == 0 && i < chunks;
        if (args.mode == 0) own = sums ? i : i - chunks;
        if (args.mode || sums || chunks > 1) part = chunk.make(args, logits, group, own);
        if (sums) {
            whole.add(part);
        } else if (args.mode == 1) {
            if (threadIdx.x == 0) static_cast<float2*>(args.parts)[blockIdx.x] = make_float2(part.max, part.sum);
        } else {
            chunk.store(args, logits, own, factor(whole, part.max, inverse(whole)));
        }
    }
    if (args.mode != 1 && threadIdx.x == 0 && (args.mode == 0 || own == 0)) store_lse(args, index, whole);
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(softmax_long)(const SoftmaxArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    passes<false>(args, Group<256>{space});
}

extern "C" __global__ void __launch_bounds__(256) ENTRY(softmax_fire)(const SoftmaxArgs args) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    passes<true>(args, Group<256>{space});
}
