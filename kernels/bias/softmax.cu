// z = softcap(scale * x) + bias + mask          in the order that `law` names
// y = exp(z - lse),  lse = ln(sum over keys of exp(z) + exp(sink))
//
// x, y     [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; in place or apart
// mask     the same with strides of its own, 0 where it is shared
// sinks    f32 [heads]
// lse      f32 [batch, heads, queries]
//
// One kernel for rows of every length, a team of threads a row: 1 to 32 lanes of a warp, so that a warp has several short
// rows; a block; or several blocks, each with some of the row's chunks of 8192 keys, which meet once (their launch is
// cooperative). A thread takes eight keys at a time; logits, then their exponentials, wait in shared memory, 4 bytes a key.
// Bytes: each logit that is not masked is read once and each probability written once, for rows whose chunks fit there
// (`held` chunks of 32 KiB a block: 7 on an H100, 57344 keys). Longer rows are read twice, or shared by blocks where rows
// are few. All of them give the same bits: the order of every sum is that of reduce.cuh.
#include "bias/row.cuh"
#include "bias/reduce.cuh"

// From eight logits and their biases to what is exponentiated, the mask still missing: x becomes z.
__device__ __forceinline__ void logits_of(const SoftmaxLaw& law, const float (&bias)[KEYS], float (&x)[KEYS]) {
    bool late = law.cap != 0.0f && law.order == 0;
    if (law.order == 2) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = (x[i] + bias[i]) * law.scale;
    } else if (late) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] *= law.scale;
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = fmaf(x[i], law.scale, bias[i]);
    }
    if (law.cap != 0.0f) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = law.cap * tanh_fixed(x[i] * law.inverse_cap);
        if (late) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) x[i] += bias[i];
        }
    }
}

// A thread's place for a pack: eight floats in two halves of 16 bytes, so that a warp's accesses meet no bank twice. A
// thread meets only what it wrote itself.
struct Stage {
    float4* at;
    unsigned lanes;

    __device__ void next() { at += 2 * lanes; }

    __device__ void put(const float (&x)[8]) const {
        at[0] = make_float4(x[0], x[1], x[2], x[3]);
        at[lanes] = make_float4(x[4], x[5], x[6], x[7]);
    }

    __device__ void get(float (&x)[8]) const {
        float4 a = at[0], b = at[lanes];
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }

    // Eight elements of global memory, as they lie there.
    __device__ void fetch_raw(const T::Bits* from) const {
#pragma unroll
        for (int i = 0; i < KEYS / WIDE; ++i) fetch(reinterpret_cast<uint4*>(at + i * lanes), from + i * WIDE);
    }

    __device__ void get_raw(float (&x)[8]) const {
#pragma unroll
        for (int i = 0; i < KEYS / WIDE; ++i) {
            float part[WIDE];
            unpack(Pack<WIDE>{*reinterpret_cast<const uint4*>(at + i * lanes)}, part);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) x[i * WIDE + j] = part[j];
        }
    }
};

struct Logits {
    Row row;
    RowBias bias;
    const T::Bits* x;
    T::Bits* y;
    const T::Bits* mask;
    // keys that may be seen: all of these when keys follow one another, else only those inside the window
    int low, high;
    // packs of eight that are read 16 bytes at a time: those from this key on, so many
    int whole_first;
    unsigned whole_count;

    __device__ Logits(const SoftmaxArgs& args, unsigned index) : row(args.bias, index), bias(args.bias, row) {
        x = static_cast<const T::Bits*>(args.x) + row.offset(args.x_strides);
        y = static_cast<T::Bits*>(args.y) + row.offset(args.y_strides);
        mask = static_cast<const T::Bits*>(args.mask);
        if (mask) mask += row.offset(args.mask_strides);
        low = row.first;
        high = row.keys;
        if (!row.key_positions) {
            // The key at the query's own position; positions lie within 2^30, so that 64 bits hold every sum.
            long long own = static_cast<long long>(row.at) - row.key_start;
            if (args.law.left != 0x7fffffff) low = static_cast<int>(max(static_cast<long long>(low), min(own - args.law.left, static_cast<long long>(high))));
            if (args.law.right != 0x7fffffff) high = static_cast<int>(max(static_cast<long long>(low), min(own + args.law.right + 1, static_cast<long long>(high))));
        }
    }

    // To be called when `low` and `high` are settled.
    __device__ void settle(const SoftmaxArgs& args) {
        whole_first = low - (KEYS - 1);
        int end = min(high, static_cast<int>(args.bias.keys) - (KEYS - 1));
        whole_count = args.aligned ? max(end - whole_first, 0) : 0;
    }

    // Whether all of eight keys from `key` on are in the tensor, in an aligned row, and some of them may be seen.
    __device__ bool whole(int key) const { return static_cast<unsigned>(key - whole_first) < whole_count; }

    // z of eight keys from `key` on, whose logits are in the stage where they are whole; -inf where a key is masked or there
    // is none.
    __device__ void load(const SoftmaxArgs& args, const Stage& stage, int key, float (&z)[KEYS]) const {
        if (key >= high || key + KEYS <= low) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) z[i] = -infinity();
            return;
        }
        int count = min(KEYS, static_cast<int>(args.bias.keys) - key);
        float value[KEYS];
        if (whole(key)) {
            stage.get_raw(z);
        } else {
            load_keys(x + key, count, false, 0.0f, z);
        }
        bias.of(args.bias, row, key, count, value);
        logits_of(args.law, value, z);
        if (mask) {
            load_keys(mask + key, count, args.aligned == 2, 0.0f, value);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) z[i] += value[i];
        }
        if (key < low || key + KEYS > high) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (key + i < low || key + i >= high) z[i] = -infinity();
            }
        }
        if (row.key_positions) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                int distance = i < count ? row.distance(key + i) : 0;
                bool seen = (args.law.left == 0x7fffffff || distance >= -args.law.left) &&
                            (args.law.right == 0x7fffffff || distance <= args.law.right);
                if (!seen) z[i] = -infinity();
            }
        }
    }

    __device__ void store(const SoftmaxArgs& args, int key, const float (&e)[KEYS], float factor) const {
        int count = min(KEYS, static_cast<int>(args.bias.keys) - key);
        float p[KEYS];
#pragma unroll
        for (int i = 0; i < KEYS; ++i) p[i] = e[i] * factor;
        store_keys(y + key, count, args.aligned, p);
    }
};

// Leaves the exponentials of a chunk in `stage`.
__device__ __forceinline__ Part make(const SoftmaxArgs& args, const Logits& logits, const Team& team, const Stage& stage,
                                     int first) {
    float most = -infinity();
    float x[KEYS];
    int packs = args.packs;
    int step = static_cast<int>(team.lanes) * KEYS;
    // All packs are on their way before the first is worked on.
    Stage at = stage;
    const T::Bits* from = logits.x + first;
#pragma unroll 1
    for (int i = 0, key = first; i < packs; ++i, key += step, from += step, at.next()) {
        if (logits.whole(key)) at.fetch_raw(from);
    }
    fetched();
    // Not unrolled: what lies between two packs waits in shared memory.
    at = stage;
#pragma unroll 1
    for (int i = 0, key = first; i < packs; ++i, key += step, at.next()) {
        logits.load(args, at, key, x);
        most = fmaxf(most, max_pack(x));
        at.put(x);
    }
    most = team.max(most);
    // Without keys any number will do: -inf minus it is -inf.
    float largest = most == -infinity() ? 0.0f : most;
    PackSum sum;
    at = stage;
#pragma unroll 1
    for (int i = 0; i < packs; ++i, at.next()) {
        at.get(x);
#pragma unroll
        for (int j = 0; j < KEYS; ++j) x[j] = exp_below_zero(x[j] - largest);
        sum.add(i, sum_pack(x));
        at.put(x);
    }
    return {largest, team.sum(sum.total())};
}

// What a row's parts are added to.
__device__ Part start(const SoftmaxArgs& args, const Row& row) {
    const float* sinks = static_cast<const float*>(args.sinks);
    float sink = sinks && row.any ? sinks[row.head] : -infinity();
    return {sink, sink == -infinity() ? 0.0f : 1.0f};
}

// What the exponentials of a part are multiplied by; 0 in a row without keys.
__device__ float factor(const Part& whole, float part_max) {
    return whole.sum == 0.0f ? 0.0f : exp_below_zero(part_max - whole.max) * (1.0f / whole.sum);
}

extern __shared__ float4 shared[];

extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(softmax)(const SoftmaxArgs args) {
    __shared__ BlockSpace space;
    // The largest logit of each chunk that is held; a launch holds 8 at most.
    __shared__ float largest[8];
    wait_for_predecessor();
    Team team(args.lanes_log, space);
    Place place(args.lanes_log, args.share, args.rows, args.chunks);
    Logits logits(args, place.row);
    // The last row's own threads may have written it already.
    if (!place.live) logits.high = 0;
    logits.settle(args);
    Part whole = start(args, logits.row);
    Part part = {0.0f, 0.0f};
    // float4 of a team's chunk
    unsigned room = args.packs * 2 * team.lanes;
    float4* own = shared + (threadIdx.x >> args.lanes_log) * room + team.lane;
    float2* parts = static_cast<float2*>(args.parts) + static_cast<long long>(place.row) * args.chunks;
    int chunks = place.end - place.first;
    bool again = chunks > static_cast<int>(args.held);
#pragma unroll 1
    for (int i = 0; i < 2 * chunks; ++i) {
        // The first pass sums, the second writes.
        bool first = i < chunks;
        int slot = first ? i : i - chunks;
        Stage stage{own + (again ? 0 : slot * room), team.lanes};
        int first_key = (place.first + slot) * CHUNK + static_cast<int>(team.lane) * KEYS;
        if (first || again) {
            part = make(args, logits, team, stage, first_key);
            if (chunks > 1 && !again && threadIdx.x == 0) largest[slot] = part.max;
        }
        if (first) {
            if (args.share == 1) {
                whole.add(part);
            } else if (threadIdx.x == 0) {
                parts[place.first + slot] = make_float2(part.max, part.sum);
            }
            continue;
        }
        if (slot == 0 && args.share > 1 && threadIdx.x == 0) {
            meet(static_cast<unsigned*>(args.counters) + place.row, args.share);
            for (unsigned k = 0; k < args.chunks; ++k) whole.add({parts[k].x, parts[k].y});
            space.row = make_float2(whole.max, whole.sum);
        }
        if (slot == 0 && args.chunks > 1) {
            __syncthreads();
            if (args.share > 1) whole = {space.row.x, space.row.y};
        }
        if (chunks > 1 && !again) part.max = largest[slot];
        if (!place.live) continue;
        float by = factor(whole, part.max);
        float x[KEYS];
        int keys = args.bias.keys;
        int step = static_cast<int>(team.lanes) * KEYS;
#pragma unroll 1
        for (int j = 0, key = first_key; j < static_cast<int>(args.packs) && key < keys; ++j, key += step, stage.next()) {
            stage.get(x);
            logits.store(args, key, x, by);
        }
    }
    if (args.lse && place.live && place.first == 0 && team.lane == 0) {
        static_cast<float*>(args.lse)[place.row] = whole.sum == 0.0f ? -infinity() : whole.max + log_normal(whole.sum);
    }
}
