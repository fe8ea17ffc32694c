/* Between a projection and attention through posenc.h: norm, rotation and a paged cache, compared with double; then refusals. */
#include "device.h"

enum { TOKENS = 3, Q_HEADS = 3, K_HEADS = 2, DIM = 16, ROW = (Q_HEADS + 2 * K_HEADS) * DIM, PAGES = 2, SIZE = 3 };
enum { CACHE = PAGES * SIZE * K_HEADS * DIM };

static const int positions[TOKENS] = {0, 131071, -3};
static const int slots[TOKENS] = {4, -1, 2};

/* A channel of a normed and rotated head. */
static double wanted(const float *x, const float *weight, int token, int channel) {
    double sum = 0.0, n[2];
    int pair = channel % (DIM / 2), at[2] = {pair, pair + DIM / 2};
    for (int i = 0; i < DIM; ++i) sum += (double)x[i] * x[i];
    for (int i = 0; i < 2; ++i) n[i] = x[at[i]] / sqrt(sum / DIM + 1e-6) * (1.0 + weight[at[i]]);
    double angle = positions[token] * pow(10000.0, -2.0 * pair / DIM);
    return channel < DIM / 2 ? n[0] * cos(angle) - n[1] * sin(angle) : n[0] * sin(angle) + n[1] * cos(angle);
}

/* Heads in rows of the packed projection. */
static PosencHeads packed(uint64_t heads, uint64_t first) {
    return (PosencHeads){1, TOKENS, heads, DIM, first * DIM, {TOKENS * ROW, ROW, DIM}};
}

/* Values in eight bits: with one scale, and with scales of their own, apart and inline. */
static void codes(PosencPrologue *prologue, const PosencPrologueCall *call, const float *bias, const float *qkv) {
    static const uint32_t stores[3] = {POSENC_STORE_E4M3, POSENC_STORE_E5M2, POSENC_STORE_INT8};
    static const float most[3] = {448.0f, 57344.0f, 127.0f}, least[3] = {0x1p-4f, 0x1p-3f, 0.5f};
    static const float given = 0.25f;
    enum { WIDE = DIM + 16, BYTES = PAGES * SIZE * K_HEADS * WIDE, SCALES = PAGES * SIZE * K_HEADS };
    const float *values = qkv + (Q_HEADS + K_HEADS) * DIM;
    for (int kind = 0; kind < 3; ++kind) {
        for (uint32_t scale = POSENC_SCALE_GIVEN; scale <= POSENC_SCALE_INLINE; ++scale) {
            uint8_t bytes[BYTES] = {0};
            float scales[SCALES] = {0};
            PosencPrologueCall own = *call;
            int width = scale == POSENC_SCALE_INLINE ? WIDE : DIM;
            PosencStored *v = &own.cache.v;
            v->x = BUFFER(bytes);
            v->heads = (PosencHeads){PAGES, SIZE, K_HEADS, width, 0, {K_HEADS * SIZE * width, width, SIZE * width}};
            v->store = stores[kind];
            v->scale = scale;
            v->scales = scale == POSENC_SCALE_GIVEN ? (PosencBuffer){upload(&given, sizeof given), 1} : BUFFER(scales);
            v->scale_heads = (PosencHeads){PAGES, SIZE, K_HEADS, 1, 0, {K_HEADS * SIZE, 1, SIZE}};
            OK(posenc_prologue_apply(prologue, &own));
            download(bytes, v->x, sizeof bytes);
            if (scale == POSENC_SCALE_DYNAMIC) download(scales, v->scales, sizeof scales);
            /* The first token's first head. */
            int at = slots[0] / SIZE * K_HEADS * SIZE + slots[0] % SIZE;
            float largest = 0.0f, by = scale == POSENC_SCALE_DYNAMIC ? scales[at] : given;
            for (int c = 0; c < DIM; ++c) largest = fmaxf(largest, fabsf(values[c] + bias[c]));
            if (scale == POSENC_SCALE_INLINE) memcpy(&by, bytes + at * width + DIM, sizeof by);
            if (scale != POSENC_SCALE_GIVEN) CHECK(near(by, largest / most[kind], 1e-6 * by));
            for (int c = 0; c < DIM; ++c) {
                double want = (values[c] + bias[c]) / by, code = bytes[at * width + c], got;
                int exponent = (bytes[at * width + c] & 0x7f) >> (kind ? 2 : 3), low = bytes[at * width + c] & (kind ? 3 : 7);
                got = kind == 0 ? ldexp(8 + low, exponent - 10) : ldexp(4 + low, exponent - 17);
                got = kind == 2 ? (int8_t)code : (bytes[at * width + c] & 0x80 ? -got : got);
                CHECK(near(got, want, least[kind] * (kind == 2 ? 1.0 : fabs(want)) * 1.001));
            }
        }
    }
    PosencPrologueCall wrong = *call;
    wrong.cache.v.store = 4;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_ARGUMENT, "store is 4");
    wrong.cache.v.store = POSENC_STORE_E4M3;
    wrong.cache.v.scale = 3;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_ARGUMENT, "scale is 3");
    wrong = *call;
    wrong.q_codes = wrong.cache.k;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_ARGUMENT, "store of q_codes is the element type");
}

/* What models do, from their configs. */
static void models(const PosencPrologueCall *call) {
    PosencModel *model = NULL;
    PosencPrologue *prologue = NULL;
    PosencLayerPrologue layer;
    OK(posenc_model_from_hf("{\"model_type\": \"qwen3_next\", \"num_hidden_layers\": 4, \"head_dim\": 16, \"rms_norm_eps\": 0.5, "
                            "\"partial_rotary_factor\": 0.5, \"rope_theta\": 10000}", &model));
    OK(posenc_model_prologue(model, 3, &layer));
    CHECK(layer.gated && !layer.latent && !layer.shares_keys && !layer.rope_first);
    CHECK(layer.q.norm == POSENC_HEAD_NORM_RMS && layer.q.weight == POSENC_NORM_ONE_PLUS_WEIGHT && layer.q.eps == 0.5);
    CHECK(layer.k.rounding == POSENC_ROUNDING_STEPS && layer.k.over == POSENC_NORM_OVER_HEAD && layer.k.rope && !layer.k.bias);
    CHECK(layer.v.norm == POSENC_HEAD_NORM_NONE && !layer.v.rope && layer.query_scale.kind == POSENC_QUERY_SCALE_ONE);
    REFUSED(posenc_model_prologue(model, 0, &layer), POSENC_VALUE, "linear_attention");
    OK(posenc_model_free(model));
    OK(posenc_model_from_hf("{\"model_type\": \"persimmon\", \"num_hidden_layers\": 2, \"head_dim\": 16}", &model));
    REFUSED(posenc_model_prologue(model, 0, &layer), POSENC_ARGUMENT, "norms and biases of model_type \"persimmon\" are not known");
    REFUSED(posenc_prologue_of_model(gpu, model, 0, 9, POSENC_F32, &prologue), POSENC_ARGUMENT, "are not known");
    OK(posenc_model_free(model));

    /* Without a norm, queries of the second token are rotated alone. */
    OK(posenc_model_from_hf("{\"model_type\": \"mistral\", \"num_hidden_layers\": 1, \"head_dim\": 16, \"rope_theta\": 10000}", &model));
    OK(posenc_prologue_of_model(gpu, model, 0, 9, POSENC_F32, &prologue));
    PosencPrologueCall own = *call;
    memset(&own.q.weight, 0, sizeof own.q.weight);
    memset(&own.k.weight, 0, sizeof own.k.weight);
    memset(&own.v.bias, 0, sizeof own.v.bias);
    OK(posenc_prologue_apply(prologue, &own));
    float q[TOKENS * Q_HEADS * DIM], qkv[TOKENS * ROW];
    download(q, own.q.out, sizeof q);
    download(qkv, own.q.x, sizeof qkv);
    for (int pair = 0; pair < DIM / 2; ++pair) {
        double angle = positions[1] * pow(10000.0, -2.0 * pair / DIM);
        CHECK(near(q[Q_HEADS * DIM + pair], qkv[ROW + pair] * cos(angle) - qkv[ROW + pair + DIM / 2] * sin(angle), 1e-5));
    }
    OK(posenc_prologue_free(prologue));
    OK(posenc_model_free(model));
}

int main(void) {
    open_device();
    PosencPrologueSpec spec = POSENC_INIT(PosencPrologueSpec);
    PosencRopeSpec rope = POSENC_INIT(PosencRopeSpec);
    rope.rotary = DIM;
    rope.base = 10000.0;
    rope.attention_factor = 1.0;
    spec.rope = rope;
    spec.q = (PosencBranch){POSENC_HEAD_NORM_RMS, POSENC_NORM_ONE_PLUS_WEIGHT, POSENC_NORM_OVER_HEAD, POSENC_ROUNDING_ONCE, 0, 1, 1e-6};
    spec.k = spec.q;
    spec.v.bias = 1;
    PosencPrologue *prologue = NULL, *none = NULL;
    OK(posenc_prologue_new(gpu, &spec, POSENC_F32, &prologue));
    ON(PosencPrologue, posenc_prologue_on, posenc_prologue_free, prologue);

    float qkv[TOKENS * ROW], q[TOKENS * Q_HEADS * DIM], weight[DIM], bias[K_HEADS * DIM], cache[2 * CACHE], got[2 * CACHE];
    fill(qkv, TOKENS * ROW, 1);
    fill(weight, DIM, 2);
    fill(bias, K_HEADS * DIM, 3);
    fill(cache, 2 * CACHE, 4);
    PosencBuffer x = BUFFER(qkv), out = BUFFER(q), caches = BUFFER(cache);
    PosencBuffer weights = BUFFER(weight), biases = BUFFER(bias);
    const int zero = 0;
    PosencBuffer flag = {upload(&zero, sizeof zero), 1};

    /* Queries elsewhere, keys and values into pages [pages, heads, rows, dim], one buffer for both. */
    PosencPrologueCall call = POSENC_INIT(PosencPrologueCall);
    call.q.x = call.k.x = call.v.x = x;
    call.q.heads = packed(Q_HEADS, 0);
    call.k.heads = packed(K_HEADS, Q_HEADS);
    call.v.heads = packed(K_HEADS, Q_HEADS + K_HEADS);
    call.q.to = POSENC_TO_OUT;
    call.q.out = out;
    call.q.out_heads = (PosencHeads){1, TOKENS, Q_HEADS, DIM, 0, {TOKENS * Q_HEADS * DIM, Q_HEADS * DIM, DIM}};
    call.q.weight = call.k.weight = weights;
    call.v.bias = biases;
    call.positions.ids = (PosencIds){upload(positions, sizeof positions), TOKENS, POSENC_I32, 0};
    call.cache.k.x = call.cache.v.x = caches;
    call.cache.k.heads = (PosencHeads){PAGES, SIZE, K_HEADS, DIM, 0, {K_HEADS * SIZE * DIM, DIM, SIZE * DIM}};
    call.cache.v.heads = call.cache.k.heads;
    call.cache.v.heads.offset = CACHE;
    call.cache.slots = (PosencIds){upload(slots, sizeof slots), TOKENS, POSENC_I32, 0};
    call.cache.flag = flag;
    OK(posenc_prologue_apply(prologue, &call));
    download(q, out, sizeof q);
    download(got, caches, sizeof got);
    for (int t = 0; t < TOKENS; ++t) {
        const float *row = qkv + t * ROW;
        for (int c = 0; c < Q_HEADS * DIM; ++c) {
            CHECK(near(q[t * Q_HEADS * DIM + c], wanted(row + c / DIM * DIM, weight, t, c % DIM), 1e-5));
        }
        for (int h = 0; h < K_HEADS && slots[t] >= 0; ++h) {
            int at = (slots[t] / SIZE * K_HEADS + h) * SIZE * DIM + slots[t] % SIZE * DIM;
            for (int c = 0; c < DIM; ++c) {
                const float *k = row + (Q_HEADS + h) * DIM, *v = k + K_HEADS * DIM;
                CHECK(near(got[at + c], wanted(k, weight, t, c), 1e-5));
                CHECK(near(got[CACHE + at + c], v[c] + bias[h * DIM + c], 1e-6));
                got[at + c] = cache[at + c], got[CACHE + at + c] = cache[CACHE + at + c];
            }
        }
    }
    /* Nothing else was written. */
    CHECK(memcmp(got, cache, sizeof got) == 0);

    /* In place, keys and values beside; pages by a table, rows counted on from starts. */
    const int table[2] = {1, 0}, start = 2;
    PosencPrologueCall own = call;
    own.q.to = own.k.to = POSENC_TO_PLACE;
    own.k.packed = own.v.packed = 1;
    own.cache.rows = POSENC_CACHE_PAGES;
    own.cache.slots = (PosencIds){upload(table, sizeof table), 2, POSENC_I32, 0};
    own.cache.width = 2;
    own.cache.first.kind = POSENC_STARTS;
    own.cache.first.ids = (PosencIds){upload(&start, sizeof start), 1, POSENC_I32, 0};
    OK(posenc_prologue_apply(prologue, &own));
    float after[TOKENS * ROW];
    download(after, x, sizeof after);
    download(got, caches, sizeof got);
    for (int t = 0; t < TOKENS; ++t) {
        int page = table[(start + t) / SIZE], at = (page * K_HEADS + 1) * SIZE * DIM + (start + t) % SIZE * DIM;
        for (int c = 0; c < DIM; ++c) {
            CHECK(after[t * ROW + c] == q[t * Q_HEADS * DIM + c]);
            CHECK(after[t * ROW + (Q_HEADS + 1) * DIM + c] == got[at + c]);
            CHECK(after[t * ROW + (Q_HEADS + K_HEADS) * DIM + c] == qkv[t * ROW + (Q_HEADS + K_HEADS) * DIM + c]);
        }
    }
    /* A page for each sequence. */
    own.q.to = own.k.to = POSENC_TO_PLACE;
    own.cache.rows = POSENC_CACHE_ROWS;
    const int first = 0;
    own.cache.first.ids = (PosencIds){upload(&first, sizeof first), 1, POSENC_I32, 0};
    OK(posenc_prologue_apply(prologue, &own));

    /* A slot beyond the cache: a flag on the device, a refusal on the CPU. */
    const int far[TOKENS] = {PAGES * SIZE, 0, 1};
    PosencPrologueCall beyond = call;
    beyond.cache.slots = (PosencIds){upload(far, sizeof far), TOKENS, POSENC_I32, 0};
    int raised = 0;
    if (on_cpu) {
        REFUSED(posenc_prologue_apply(prologue, &beyond), POSENC_VALUE, "slot 6 lies outside the cache, which has 6");
    } else {
        OK(posenc_prologue_apply(prologue, &beyond));
        download(&raised, flag, sizeof raised);
        CHECK(raised == 1);
    }

    codes(prologue, &call, bias, qkv);
    models(&call);
    PosencPrologueCall wrong = call;
    memset(&wrong.q.weight, 0, sizeof wrong.q.weight);
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_VALUE, "q needs a weight of 16 elements, there is none");
    wrong = call;
    wrong.q.to = 3;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_ARGUMENT, "to is 3");
    wrong = call;
    wrong.q.packed = 1;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_ARGUMENT, "packed of q is 1");
    wrong = call;
    wrong.k.packed = 1;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_VALUE, "k lies in the buffer of q");
    wrong = call;
    wrong.cache.rows = 3;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_ARGUMENT, "rows is 3");
    wrong = call;
    memset(&wrong.cache, 0, sizeof wrong.cache);
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_VALUE, "k is read and goes nowhere");
    wrong = call;
    memset(&wrong.k, 0, sizeof wrong.k);
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_VALUE, "there is a cache of k and no k");
    wrong = call;
    wrong.k.heads.tokens = 2;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_VALUE, "q has 3 tokens and k 2, they must be equal");
    wrong = call;
    wrong.cache.v.heads.offset = 0;
    REFUSED(posenc_prologue_apply(prologue, &wrong), POSENC_VALUE, "may overlap in one buffer");
    PosencPrologueSpec odd = spec;
    odd.k.norm = 3;
    REFUSED(posenc_prologue_new(gpu, &odd, POSENC_F32, &none), POSENC_ARGUMENT, "norm is 3");
    odd = spec;
    odd.q.eps = -1.0;
    REFUSED(posenc_prologue_new(gpu, &odd, POSENC_F32, &none), POSENC_VALUE, "eps of q is -1");
    CHECK(none == NULL);

    OK(posenc_prologue_free(prologue));
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
