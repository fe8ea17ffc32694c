// z = softcap(scale * x) + bias + mask          in the order that law.cuh states
// y = exp(z - lse),  lse = ln(sum over keys of exp(z) + exp(sink))          in base 2: power.cuh
//
// x, y     [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; in place or apart
// mask     the same with strides of its own, 0 where it is shared
// sinks    f32 [heads]
// scales   f32 [heads], with terms
// lse      f32 [batch, heads, queries]
//
// One kernel for rows of every length, a team of threads a row: 1 to 32 lanes of a warp, so that a warp has several
// short rows; a block; or several blocks, each with some of the row's chunks of 8192 keys, which meet once (their
// launch is cooperative). A thread takes eight keys at a time, up to eight times; logits, then their exponentials, wait
// in shared memory, 4 bytes a key. Bytes: each logit that is not masked is read once and each probability written once,
// for rows whose chunks fit there (`held` chunks of 32 KiB a block: 7 on an H100, 57344 keys). Longer rows are read
// twice, or shared by blocks where rows are few. All of them give the same bits: the order of every sum is that of
// reduce.cuh. What is added to a logit is a type parameter: RowBias, or the sum of terms of bias/terms.cuh.
#pragma once
#include "attend/law.cuh"
#include "attend/power.cuh"
#include "bias/forms.cuh"
#include "common/barrier.cuh"
#include "common/keys.cuh"
#include "common/reduce.cuh"

extern __shared__ float4 shared[];

// A thread's place for a pack: eight floats in two halves of 16 bytes, so that a warp's accesses meet no bank twice. A
// thread meets only what it wrote itself.
struct Stage {
    float4* at = shared + threadIdx.x;

    __device__ void skip(int packs) { at += 2 * static_cast<int>(blockDim.x) * packs; }

    __device__ float4& half(int i) const { return at[i * blockDim.x]; }

    __device__ void put(const float (&x)[8]) const {
        half(0) = make_float4(x[0], x[1], x[2], x[3]);
        half(1) = make_float4(x[4], x[5], x[6], x[7]);
    }

    __device__ void get(float (&x)[8]) const {
        float4 a = half(0), b = half(1);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }

    // Eight elements of global memory, as they lie there.
    __device__ void fetch_raw(const T::Bits* from) const {
#pragma unroll
        for (int i = 0; i < KEYS / WIDE; ++i) fetch(reinterpret_cast<uint4*>(&half(i)), from + i * WIDE);
    }

    __device__ void get_raw(float (&x)[8]) const {
#pragma unroll
        for (int i = 0; i < KEYS / WIDE; ++i) {
            float part[WIDE];
            unpack(Pack<WIDE>{*reinterpret_cast<const uint4*>(&half(i))}, part);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) x[i * WIDE + j] = part[j];
        }
    }
};

template <class Bias> struct Logits {
    Row row;
    Bias bias;
    // keys that may be seen: all of these when keys follow one another, else only those inside the window
    int low, high;

    template <class... Terms>
    __device__ Logits(const SoftmaxArgs& args, const Place& place, const Terms&... terms)
        : row(args.bias, place.row), bias(args.bias, row, terms...) {
        low = row.first;
        high = row.keys;
        if (!args.bias.key_positions) {
            // The key at the query's own position; positions lie within 2^30, so that 64 bits hold every sum.
            long long own = static_cast<long long>(row.at) - row.key_start;
            if (args.law.left != 0x7fffffff)
                low = static_cast<int>(
                    max(static_cast<long long>(low), min(own - args.law.left, static_cast<long long>(high))));
            if (args.law.right != 0x7fffffff)
                high = static_cast<int>(
                    max(static_cast<long long>(low), min(own + args.law.right + 1, static_cast<long long>(high))));
        }
        // The last row's own threads may have written it already.
        if (!place.live) low = high = 0;
    }

    __device__ const T::Bits* x(const SoftmaxArgs& args) const {
        return static_cast<const T::Bits*>(args.x) + row.offset(args.x_strides);
    }

    __device__ T::Bits* y(const SoftmaxArgs& args) const {
        return static_cast<T::Bits*>(args.y) + row.offset(args.y_strides);
    }

    // Packs that begin below this key are read 16 bytes at a time.
    __device__ int whole(const SoftmaxArgs& args) const {
        return args.team.aligned ? min(high, static_cast<int>(args.bias.keys) - (KEYS - 1)) : 0;
    }

    // z of eight keys from `key` on, some of which may be seen, whose logits are in the stage where they are whole;
    // -inf where a key is masked or there is none.
    __device__ void load(const SoftmaxArgs& args, const Stage& stage, int key, float log2e, float (&z)[KEYS]) const {
        int count = min(KEYS, static_cast<int>(args.bias.keys) - key);
        // The bias first: it needs the most registers.
        float value[KEYS];
        bias.weighted(args.bias, row, key, count, bias_factor(args.law, log2e), value);
        if (key < whole(args)) {
            stage.get_raw(z);
        } else {
            load_keys(x(args) + key, count, false, 0.0f, z);
        }
        powers_of(args.law, bias.scale(args.law, row), log2e, value, z);
        if (args.mask) {
            const T::Bits* mask = static_cast<const T::Bits*>(args.mask) + row.offset(args.mask_strides);
            load_keys(mask + key, count, args.team.aligned == 2, 0.0f, value);
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                // -inf masks a key whatever its logit holds.
                z[i] = value[i] == -infinity() ? -infinity() : fmaf(value[i], log2e, z[i]);
            }
        }
        if (key < low || key > high - KEYS) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (key + i < low || key + i >= high) z[i] = -infinity();
            }
        }
        if (args.bias.key_positions) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                int distance = i < count ? row.distance(args.bias, key + i) : 0;
                bool seen = (args.law.left == 0x7fffffff || distance >= -args.law.left) &&
                            (args.law.right == 0x7fffffff || distance <= args.law.right);
                if (!seen) z[i] = -infinity();
            }
        }
    }
};

// A thread's packs of one chunk: the first begins at `key`, the next ones a step of keys later each.
struct Packs {
    int key;
    // those of which some key may be seen
    int first, end;

    __device__ Packs() {}
    template <class Bias>
    __device__ Packs(const SoftmaxArgs& args, const Logits<Bias>& logits, const Team& team, int chunk)
        : key(chunk * CHUNK + static_cast<int>(team.lane) * KEYS) {
        first = below(args, logits.low - (KEYS - 1));
        end = below(args, logits.high);
    }

    static __device__ int step(const SoftmaxArgs& args) { return KEYS << args.team.lanes_log; }

    __device__ int key_of(const SoftmaxArgs& args, int pack) const { return key + pack * step(args); }

    // How many of them begin below a key.
    __device__ int below(const SoftmaxArgs& args, int limit) const {
        return limit > key
                   ? min(((limit - key - 1) >> (args.team.lanes_log + 3)) + 1, static_cast<int>(args.team.packs))
                   : 0;
    }
};

// From the stage to the stage: z of `count` packs from `key` on that lie on one side of the query, and the largest of
// them.
template <bool SLOPED>
__device__ __forceinline__ float load_side(float scale, Stage at, int distance, int step, int count, float bias) {
    float most = -infinity();
#pragma unroll 2
    for (; count > 0; --count, at.skip(1), distance += step) {
        float z[KEYS];
        at.get_raw(z);
#pragma unroll
        for (int first = 0; first < KEYS; first += WIDE) {
            float start = static_cast<float>(distance + first);
#pragma unroll
            for (int i = 0; i < WIDE; ++i) {
                z[first + i] = fmaf(z[first + i], scale, SLOPED ? SlopesBias::along(bias, i, start) : bias);
            }
        }
        most = max_nan(most, max_pack(z));
        at.put(z);
    }
    return most;
}

// The sum of a team's exponentials: a tree over packs of 16 bytes, so that f32 has two for eight keys, which meet last.
struct KeySum {
    static constexpr int EACH = KEYS / WIDE;
    PackSum sums[EACH];

    __device__ void add(const float (&x)[KEYS]) {
        if constexpr (EACH == 1) {
            sums[0].add(sum_pack(x));
        } else {
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                sums[i].add((x[4 * i] + x[4 * i + 2]) + (x[4 * i + 1] + x[4 * i + 3]));
            }
        }
    }

    __device__ float total(const Team& team) const {
        float total = team.sum(sums[0].total());
        if constexpr (EACH == 1) return total;
        // One space for both.
        if (team.lanes > 32) __syncthreads();
        return total + team.sum(sums[EACH - 1].total());
    }
};

// Leaves the exponentials of a chunk in the stage, of those packs of which some key may be seen. Two packs at most are
// worked on together: what lies between waits in shared memory. All threads of a warp call it together. `marks`: NaN
// for each key that is seen, and 0 for the others.
template <class Bias>
__device__ __forceinline__ Part make(const SoftmaxArgs& args, const Logits<Bias>& logits, const Team& team,
                                     const Packs& packs, Stage stage, bool marks) {
    // Finite logits whose z is below the range of f32 are all alike, and are not masked: where a chunk has no others,
    // or only marks are wanted, z is made smaller.
    bool small = marks;
    float largest;
    float x[KEYS];
    Stage at;
    while (true) {
        // All packs are on their way before the first is worked on.
        at = stage;
        at.skip(packs.first);
        const T::Bits* from = logits.x(args) + packs.key_of(args, packs.first);
#pragma unroll 1
        for (int i = packs.below(args, logits.whole(args)) - packs.first; i > 0;
             --i, from += Packs::step(args), at.skip(1)) {
            at.fetch_raw(from);
        }
        fetched();

        float log2e = small ? LOG2E / 256.0f : LOG2E;
        float most = -infinity();
        int begin[2] = {0x7fffffff, 0x7fffffff}, end[2];
        if constexpr (Bias::SIDED) {
            // Packs whose keys may all be seen and need no other work than the scale and the bias of one side.
            bool easy = args.team.aligned && args.law.cap == 0.0f && args.law.order != LogitOrder::BIAS_THEN_SCALE &&
                        !args.mask;
            int low = logits.low, high = easy ? max(logits.high - (KEYS - 1), low) : low;
            Sides sides(args.bias, logits.row, logits.bias, log2e);
            begin[0] = packs.below(args, low), begin[1] = packs.below(args, max(min(sides.right, high), low));
            end[0] = packs.below(args, max(min(sides.left, high), low)), end[1] = packs.below(args, high);
#pragma unroll 1
            for (int side = 0; side < 2; ++side) {
                int pack = side ? begin[1] : begin[0];
                int count = side ? end[1] - begin[1] : end[0] - begin[0];
                if (count <= 0) continue;
                int distance = packs.key_of(args, pack) + RowBias::shift(args.bias, logits.row);
                at = stage;
                at.skip(pack);
                float scale = args.law.scale * log2e;
                float value = (side ? logits.bias.right : logits.bias.left) * log2e;
                if (args.bias.kind == BiasKind::SLOPES) {
                    if (side) value = -value;
                    most = max_nan(most, load_side<true>(scale, at, distance, Packs::step(args), count, value));
                } else {
                    most = max_nan(most, load_side<false>(scale, at, distance, Packs::step(args), count, value));
                }
            }
        }
#pragma unroll 1
        for (int i = packs.first;; ++i) {
            if (i == begin[0]) i = end[0];
            if (i == begin[1]) i = end[1];
            if (i >= packs.end) break;
            at = stage;
            at.skip(i);
            logits.load(args, at, packs.key_of(args, i), log2e, x);
            most = max_nan(most, max_pack(x));
            at.put(x);
        }
        largest = team.max(most);
        bool low = largest == -infinity() && !small && logits.low < logits.high;
        if (!__any_sync(ALL_LANES, low)) break;
        small |= low;
        if (team.lanes > 32) __syncthreads();
    }

    // Without keys any m will do.
    float m = largest > -infinity() && largest < infinity() ? rintf(largest) : 0.0f;
    if (small) m = largest == -infinity() ? 0.0f : -LARGEST;
    Powers powers(m);
    KeySum sum;
    at = stage;
    at.skip(packs.first);
#pragma unroll 2
    for (int i = packs.end - packs.first; i > 0; --i, at.skip(1)) {
        at.get(x);
        if (small) {
            float mark = marks ? __int_as_float(0x7fffffff) : 1.0f;
#pragma unroll
            for (int j = 0; j < KEYS; ++j) x[j] = x[j] == -infinity() ? 0.0f : mark;
        } else {
            if (powers.base != 0.0f) {
#pragma unroll
                for (int j = 0; j < KEYS; ++j) x[j] -= powers.base;
            }
#pragma unroll
            for (int j = 0; j < KEYS; ++j) x[j] = powers.of(x[j]);
        }
        sum.add(x);
        at.put(x);
    }
    float total = sum.total(team);
    return {m, largest < infinity() ? total : __int_as_float(0x7fffffff)};
}

// Writes a chunk's probabilities: its share of what is in the stage, and zeros where no key may be seen.
template <class Bias>
__device__ __forceinline__ void finish(const SoftmaxArgs& args, const Logits<Bias>& logits, const Packs& packs,
                                       Stage stage, const Shares& shares) {
    int keys = args.bias.keys;
    float p[KEYS];
    int end = args.team.aligned ? max(packs.first, min(packs.end, packs.below(args, keys - (KEYS - 1)))) : packs.first;
    Stage at = stage;
    at.skip(packs.first);
    T::Bits* to = logits.y(args) + packs.key_of(args, packs.first);
#pragma unroll 1
    for (int i = end - packs.first; i > 0; --i, to += Packs::step(args), at.skip(1)) {
        at.get(p);
#pragma unroll
        for (int j = 0; j < KEYS; ++j) p[j] = shares.of(p[j]);
        store_keys(to, KEYS, true, p);
    }
    int count = packs.below(args, keys);
#pragma unroll 1
    for (int i = 0;; ++i) {
        if (i == packs.first) i = end;
        if (i >= count) break;
        bool seen = i >= packs.first && i < packs.end;
        at = stage;
        at.skip(i);
        if (seen) at.get(p);
#pragma unroll
        for (int j = 0; j < KEYS; ++j) p[j] = seen ? shares.of(p[j]) : 0.0f;
        int key = packs.key_of(args, i);
        store_keys(logits.y(args) + key, min(KEYS, keys - key), args.team.aligned, p);
    }
}

// -inf: the row has none.
__device__ float sink_of(const SoftmaxArgs& args, const Row& row) {
    const float* sinks = static_cast<const float*>(args.sinks);
    return sinks && row.any ? sinks[row.head] : -infinity();
}

// Of a row that blocks share.
__device__ float2* parts_of(const SoftmaxArgs& args, const Place& place) {
    return static_cast<float2*>(args.team.parts) + static_cast<long long>(place.row) * args.team.chunks;
}

template <class Bias, class... Terms>
__device__ __forceinline__ void softmax(const SoftmaxArgs& args, const Terms&... terms) {
    __shared__ BlockSpace space;
    // m of each chunk that is held; a launch holds 8 at most.
    __shared__ float largest[8];
    wait_for_predecessor();
    Team team(args.team.lanes_log, space);
    Place place(args.team);
    Logits<Bias> logits(args, place, terms...);
    Part whole = part_of_sink(sink_of(args, logits.row));
    float last = 0.0f;
    int chunks = place.end - place.first;
    bool again = chunks > static_cast<int>(args.team.held);
    // Read once: the barriers between would have it read again.
    unsigned share = args.team.share;
    Packs packs;
#pragma unroll 1
    for (int i = 0; i < 2 * chunks; ++i) {
        // The first pass sums, the second writes.
        bool first = i < chunks;
        int slot = first ? i : i - chunks;
        Stage stage;
        if (!again) stage.skip(slot * static_cast<int>(args.team.packs));
        if (i == 0 || chunks > 1) packs = Packs(args, logits, team, place.first + slot);
        if (i == chunks && share > 1 && threadIdx.x == 0) {
            meet(static_cast<unsigned*>(args.team.counters) + place.row, share);
            const float2* parts = parts_of(args, place);
            for (unsigned k = 0; k < args.team.chunks; ++k) whole.add({parts[k].x, parts[k].y});
            space.row = make_float2(whole.max, whole.sum);
        }
        if (i == chunks && args.team.chunks > 1) {
            __syncthreads();
            if (share > 1) whole = {space.row.x, space.row.y};
        }
        // No number: only now is it known that what is masked is to be told from what is small.
        bool marks = !first && whole.sum != whole.sum;
        Part part = {0.0f, 0.0f};
        bool makes = first || again || __any_sync(ALL_LANES, marks);
        if (makes) part = make(args, logits, team, packs, stage, marks);
        if (first) {
            if (chunks > 1 && !again && threadIdx.x == 0) largest[slot] = part.max;
            if (share == 1) {
                whole.add(part);
            } else if (threadIdx.x == 0) {
                parts_of(args, place)[place.first + slot] = make_float2(part.max, part.sum);
            }
            last = part.max;
            continue;
        }
        float max = again ? part.max : chunks > 1 ? largest[slot] : last;
        Part row = whole;
        if (marks) row = {0.0f, 1.0f}, max = 0.0f;
        if (place.live) finish(args, logits, packs, stage, Shares(row, max));
    }
    if (args.lse && place.live && place.first == 0 && team.lane == 0) {
        static_cast<float*>(args.lse)[place.row] = whole.log(sink_of(args, logits.row));
    }
}
