// The bias of one row, whatever its form: what every consumer of a bias takes.
//
// A new form is a file in bias/form, a code in BiasKind, and a branch wherever RowBias has one for each form.
#pragma once
#include "bias/form/fire.cuh"
#include "bias/form/numbers.cuh"
#include "bias/form/slopes.cuh"

struct RowBias : BiasState {
    // The keys on one side of the query may have one number, or one slope: `Sides`.
    static constexpr bool SIDED = true;

    __device__ RowBias(const BiasArgs& args, const Row& row) {
        if (args.kind == BiasKind::FIRE) {
            as<FireBias>().start(args, row);
        } else if (args.kind == BiasKind::SLOPES) {
            as<SlopesBias>().start(args, row);
        } else if (args.kind == BiasKind::ROW) {
            as<NumbersBias>().start(args, row);
        } else {
            left = right = 0.0f;
        }
    }

    // What multiplies the logits of a head: heads have scales of their own in kernels of terms alone.
    static __device__ float scale(const SoftmaxLaw& law, const Row&) { return law.scale; }

    // What a key's index lacks of its distance, or of its position where that is all the bias knows.
    static __device__ int shift(const BiasArgs& args, const Row& row) {
        return row.key_start - (args.key_only ? 0 : row.at);
    }

    // The bias of the `count` keys from `key` on, 1 to 8 of them; the others keep what they hold. `IN_TURN`: FIRE's
    // lines are looked for one after another, which takes registers.
    template <bool IN_TURN = false>
    __device__ void of(const BiasArgs& args, const Row& row, int key, int count, float (&bias)[KEYS]) const {
        if (args.kind == BiasKind::NONE) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] = 0.0f;
            return;
        }
        int from = key + shift(args, row);
        if (args.key_positions || !neighbours(args, from, bias)) {
            int origin = args.key_only ? 0 : row.at;
            int distance[KEYS];
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                distance[i] = from + i;
                if (args.key_positions) distance[i] = i < count ? row.key_positions(args)[key + i] - origin : 0;
            }
            each<IN_TURN>(args, row, distance, bias);
        }
        if (args.gates) {
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] *= row.gate;
        }
    }

    // The same times `factor`, as a softmax adds it.
    __device__ void weighted(const BiasArgs& args, const Row& row, int key, int count, float factor,
                             float (&bias)[KEYS]) const {
        if (args.kind == BiasKind::SLOPES && !args.key_positions) {
            as<SlopesBias>().weighted(key + shift(args, row), factor, bias);
            if (!args.gates) return;
#pragma unroll
            for (int i = 0; i < KEYS; ++i) bias[i] *= row.gate;
            return;
        }
        of(args, row, key, count, bias);
#pragma unroll
        for (int i = 0; i < KEYS; ++i) bias[i] *= factor;
    }

    __device__ bool masks_a_side(float factor) const { return as<SlopesBias>().masks_a_side(factor); }

private:
    // This row's state as one of the forms, which add functions and no fields.
    template <class Form> __device__ Form& as() { return static_cast<Form&>(static_cast<BiasState&>(*this)); }
    template <class Form> __device__ const Form& as() const {
        return static_cast<const Form&>(static_cast<const BiasState&>(*this));
    }

    __device__ bool neighbours(const BiasArgs& args, int from, float (&bias)[KEYS]) const {
        if (args.kind == BiasKind::SLOPES) return as<SlopesBias>().neighbours(args, from, bias);
        if (args.kind == BiasKind::ROW) return as<NumbersBias>().neighbours(args, from, bias);
        return false;
    }

    template <bool IN_TURN>
    __device__ void each(const BiasArgs& args, const Row& row, const int (&distance)[KEYS], float (&bias)[KEYS]) const {
        if (args.kind == BiasKind::SLOPES) {
            as<SlopesBias>().each(args, row, distance, bias);
        } else if (args.kind == BiasKind::ROW) {
            as<NumbersBias>().each(args, row, distance, bias);
        } else if constexpr (IN_TURN) {
            as<FireBias>().each_in_turn(args, row, distance, bias);
        } else {
            as<FireBias>().each(args, row, distance, bias);
        }
    }
};

// The keys of a row whose bias is one number, or a slope times a distance: packs that begin below `left` take that of
// the past, those from `right` on that of the future.
struct Sides {
    int left, right;

    // With slopes times `factor`.
    __device__ Sides(const BiasArgs& args, const Row& row, const RowBias& bias, float factor)
        : left(0), right(0x7fffffff) {
        bool slopes = args.kind == BiasKind::SLOPES;
        // Positions lie within 2^30.
        constexpr int MOST = 1 << 30;
        int shift = RowBias::shift(args, row);
        bool near = shift > -MOST && shift < MOST - row.keys;
        if (args.key_positions || args.gates || args.kind == BiasKind::FIRE || !near) return;
        if (slopes && bias.masks_a_side(factor)) return;
        if (args.kind == BiasKind::NONE) {
            left = right;
            return;
        }
        left = (slopes ? SlopesBias::past(args) : NumbersBias::past(args)) + 1 - shift;
        right = (slopes ? SlopesBias::future(args) : NumbersBias::future(args)) - shift;
    }
};
