/* Rotates queries and keys through posenc.h and compares them with a rotation in double; then provokes every refusal. */
#include "posenc.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The driver's own functions that a program has anyway: no CUDA header is needed here. */
static int (*init)(unsigned);
static int (*device_get)(int *, int);
static int (*retain)(void **, int);
static int (*set_current)(void *);
static int (*stream_create)(PosencStream *, unsigned);
static int (*stream_synchronize)(PosencStream);
static int (*allocate)(uint64_t *, size_t);
static int (*to_device)(uint64_t, const void *, size_t);
static int (*to_host)(void *, uint64_t, size_t);

static void *driver;

static void check(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s; the last error is: %s\n", what, posenc_last_error());
    exit(1);
}

static void load(const char *name, void *function) {
    void *found = dlsym(driver, name);
    check(found != NULL, name);
    memcpy(function, &found, sizeof found);
}

static uint64_t upload(const void *data, size_t bytes) {
    uint64_t address = 0;
    check(allocate(&address, bytes) == 0, "cuMemAlloc");
    check(to_device(address, data, bytes) == 0, "cuMemcpyHtoD");
    return address;
}

static void refused(int status, int want, const char *part) {
    if (status == want && strstr(posenc_last_error(), part) != NULL) return;
    fprintf(stderr, "wanted status %d and \"%s\", got %d and \"%s\"\n", want, part, status, posenc_last_error());
    exit(1);
}

enum { TOKENS = 5, Q_HEADS = 3, K_HEADS = 2, DIM = 24, ROTARY = 16, Q = TOKENS * Q_HEADS * DIM, K = TOKENS * K_HEADS * DIM };

/* What the header promises, in double. */
static double worst(const float *before, const float *after, int heads, const int *positions, double base) {
    double off = 0.0;
    for (int t = 0; t < TOKENS; ++t) {
        for (int h = 0; h < heads; ++h) {
            const float *x = before + (t * heads + h) * DIM;
            const float *y = after + (t * heads + h) * DIM;
            for (int i = 0; i < ROTARY / 2; ++i) {
                double angle = positions[t] * pow(base, -2.0 * i / ROTARY);
                double a = x[i], b = x[i + ROTARY / 2];
                off = fmax(off, fabs(y[i] - (a * cos(angle) - b * sin(angle))));
                off = fmax(off, fabs(y[i + ROTARY / 2] - (a * sin(angle) + b * cos(angle))));
            }
            for (int i = ROTARY; i < DIM; ++i) off = fmax(off, fabs(y[i] - x[i]));
        }
    }
    return off;
}

static PosencHeads heads(uint64_t data, uint64_t count) {
    PosencHeads heads = {.data = data, .len = TOKENS * count * DIM, .heads = count};
    heads.strides[0] = TOKENS * count * DIM;
    heads.strides[1] = count * DIM;
    heads.strides[2] = DIM;
    return heads;
}

int main(void) {
    driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    check(driver != NULL, "libcuda.so.1 does not load");
    load("cuInit", &init);
    load("cuDeviceGet", &device_get);
    load("cuDevicePrimaryCtxRetain", &retain);
    load("cuCtxSetCurrent", &set_current);
    load("cuStreamCreate", &stream_create);
    load("cuStreamSynchronize", &stream_synchronize);
    load("cuMemAlloc_v2", &allocate);
    load("cuMemcpyHtoD_v2", &to_device);
    load("cuMemcpyDtoH_v2", &to_host);
    int device;
    void *context;
    PosencStream stream;
    check(init(0) == 0 && device_get(&device, 0) == 0, "no device");
    check(retain(&context, device) == 0 && set_current(context) == 0, "no context");
    check(stream_create(&stream, 1) == 0, "no stream");
    check(posenc_version() >= 100, "the version");

    float q[Q], k[K], got[Q];
    for (int i = 0; i < Q; ++i) q[i] = (i % 2 ? -1.0f : 1.0f) * (0.5f + 0.01f * (float)(i % 151));
    for (int i = 0; i < K; ++i) k[i] = (i % 3 ? -1.0f : 1.0f) * (0.5f + 0.01f * (float)(i % 149));
    const int positions[TOKENS] = {0, 1, -7, 1000, 131071};
    uint64_t q_x = upload(q, sizeof q), k_x = upload(k, sizeof k), q_y = upload(q, sizeof q);
    uint64_t ids = upload(positions, sizeof positions);

    PosencGpu *gpu = NULL;
    check(posenc_gpu_new(0, stream, 0, &gpu) == POSENC_OK, "posenc_gpu_new");
    PosencRopeSpec spec = {.version = POSENC_ROPE_SPEC_VERSION, .size = sizeof spec, .rotary = ROTARY, .base = 10000.0};
    spec.attention_factor = 1.0;
    spec.pairing_out = POSENC_SAME;
    PosencRope *rope = NULL;
    check(posenc_rope_new(gpu, &spec, POSENC_F32, &rope) == POSENC_OK, "posenc_rope_new");

    PosencRopeCall call = {.version = POSENC_ROPE_CALL_VERSION, .size = sizeof call, .batch = 1, .tokens = TOKENS, .dim = DIM};
    call.q = heads(q_x, Q_HEADS);
    call.k = heads(k_x, K_HEADS);
    call.positions.element = POSENC_I32;
    call.positions.ids = ids;
    call.positions.ids_len = TOKENS;

    /* In place, and back. */
    check(posenc_rope_rotate(rope, &call) == POSENC_OK, "in place");
    check(stream_synchronize(stream) == 0 && to_host(got, q_x, sizeof q) == 0, "a copy");
    check(worst(q, got, Q_HEADS, positions, 10000.0) < 2e-6, "queries in place");
    check(to_host(got, k_x, sizeof k) == 0, "a copy");
    check(worst(k, got, K_HEADS, positions, 10000.0) < 2e-6, "keys in place");
    call.inverse = 1;
    check(posenc_rope_rotate(rope, &call) == POSENC_OK, "back");
    check(stream_synchronize(stream) == 0 && to_host(got, q_x, sizeof q) == 0, "a copy");
    for (int i = 0; i < Q; ++i) check(fabsf(got[i] - q[i]) < 2e-6f, "back is not where it began");

    /* Copied, queries alone. */
    call.inverse = 0;
    check(to_device(q_x, q, sizeof q) == 0, "a copy");
    PosencRopeCall copy = call;
    copy.q_out = heads(q_y, Q_HEADS);
    memset(&copy.k, 0, sizeof copy.k);
    check(posenc_rope_rotate(rope, &copy) == POSENC_OK, "copied");
    check(stream_synchronize(stream) == 0 && to_host(got, q_y, sizeof q) == 0, "a copy");
    check(worst(q, got, Q_HEADS, positions, 10000.0) < 2e-6, "queries copied");
    check(to_host(got, q_x, sizeof q) == 0 && memcmp(got, q, sizeof q) == 0, "the source changed");

    /* Packed: the queries of the first head and keys of the second, in one buffer. */
    PosencRopeCall packed = call;
    packed.packed = 1;
    packed.q = heads(q_x, Q_HEADS);
    packed.q.heads = 1;
    packed.k = packed.q;
    packed.k.offset = DIM;
    check(posenc_rope_rotate(rope, &packed) == POSENC_OK, "packed");
    check(stream_synchronize(stream) == 0 && to_host(got, q_x, sizeof q) == 0, "a copy");
    float two[2 * TOKENS * DIM], from[2 * TOKENS * DIM];
    for (int t = 0; t < TOKENS; ++t) {
        memcpy(two + 2 * t * DIM, got + 3 * t * DIM, 2 * DIM * sizeof(float));
        memcpy(from + 2 * t * DIM, q + 3 * t * DIM, 2 * DIM * sizeof(float));
        check(memcmp(got + (3 * t + 2) * DIM, q + (3 * t + 2) * DIM, DIM * sizeof(float)) == 0, "the third head changed");
    }
    check(worst(from, two, 2, positions, 10000.0) < 2e-6, "packed");

    /* A table that turns everything by a quarter, whatever the position. */
    float table[TOKENS * ROTARY];
    for (int i = 0; i < TOKENS * ROTARY; ++i) table[i] = i % ROTARY < ROTARY / 2 ? 0.0f : 1.0f;
    PosencRopeCall by_table = copy;
    check(to_device(q_x, q, sizeof q) == 0, "a copy");
    by_table.by_table = 1;
    by_table.cos = upload(table, sizeof table);
    by_table.cos_len = TOKENS * ROTARY;
    by_table.table_rows = TOKENS;
    by_table.table_stride = ROTARY;
    check(posenc_rope_rotate(rope, &by_table) == POSENC_OK, "by a table");
    check(stream_synchronize(stream) == 0 && to_host(got, q_y, sizeof q) == 0, "a copy");
    for (int h = 0; h < TOKENS * Q_HEADS; ++h) {
        for (int i = 0; i < ROTARY / 2; ++i) {
            check(got[h * DIM + i] == -q[h * DIM + i + ROTARY / 2], "a quarter turn");
            check(got[h * DIM + i + ROTARY / 2] == q[h * DIM + i], "a quarter turn");
        }
    }

    /* One start, 64 bits, and the spec of a model's config. */
    const int64_t start = 41;
    const int counted[TOKENS] = {41, 42, 43, 44, 45};
    PosencRope *model = NULL;
    const char *config = "{\"model_type\": \"gpt_neox\", \"num_hidden_layers\": 2, \"hidden_size\": 48, "
                         "\"num_attention_heads\": 2, \"rotary_pct\": 0.66667, \"rotary_emb_base\": 5000, "
                         "\"max_position_embeddings\": 2048}";
    check(posenc_rope_from_hf(gpu, config, 0, 2048, POSENC_F32, &model) == POSENC_OK, "posenc_rope_from_hf");
    PosencRopeCall starts = copy;
    starts.positions.kind = POSENC_STARTS;
    starts.positions.element = POSENC_I64;
    starts.positions.ids = upload(&start, sizeof start);
    starts.positions.ids_len = 1;
    check(posenc_rope_rotate(model, &starts) == POSENC_OK, "a start");
    check(stream_synchronize(stream) == 0 && to_host(got, q_y, sizeof q) == 0, "a copy");
    check(worst(q, got, Q_HEADS, counted, 5000.0) < 2e-6, "a model's RoPE from a start");

    /* Sinusoids, written: row 1 begins with the sine and the cosine of 1. */
    PosencSinusoidSpec waves = {.version = POSENC_SINUSOID_SPEC_VERSION, .size = sizeof waves, .dim = DIM};
    waves.pairing = POSENC_INTERLEAVED;
    waves.max_period = 10000.0;
    waves.scale = 1.0;
    PosencSinusoid *sinusoid = NULL;
    check(posenc_sinusoid_new(gpu, &waves, POSENC_F32, &sinusoid) == POSENC_OK, "posenc_sinusoid_new");
    PosencSinusoidCall write = {.version = POSENC_SINUSOID_CALL_VERSION, .size = sizeof write, .batch = 1};
    write.tokens = TOKENS;
    write.data = q_y;
    write.len = Q;
    write.strides[0] = TOKENS * DIM;
    write.strides[1] = DIM;
    write.positions.kind = POSENC_COUNTED;
    check(posenc_sinusoid_run(sinusoid, &write) == POSENC_OK, "sinusoids");
    check(stream_synchronize(stream) == 0 && to_host(got, q_y, sizeof q) == 0, "a copy");
    for (int t = 0; t < TOKENS; ++t) {
        for (int i = 0; i < DIM / 2; ++i) {
            double angle = t * pow(10000.0, -2.0 * i / DIM);
            check(fabs(got[t * DIM + 2 * i] - sin(angle)) < 2e-7, "a sine");
            check(fabs(got[t * DIM + 2 * i + 1] - cos(angle)) < 2e-7, "a cosine");
        }
    }
    write.len = 7;
    refused(posenc_sinusoid_run(sinusoid, &write), POSENC_VALUE, "holds 7 elements");

    /* A causal softmax with ALiBi of 2 heads, slopes 2^-4 and 2^-8; copied. */
    enum { HEADS = 2, KEYS = 6, LOGITS = HEADS * KEYS * KEYS };
    PosencSoftmaxSpec causal = {.version = POSENC_SOFTMAX_SPEC_VERSION, .size = sizeof causal, .bias = POSENC_BIAS_ALIBI};
    causal.causal = 1;
    causal.scale = 0.5f;
    causal.heads = HEADS;
    PosencSoftmax *softmax = NULL;
    check(posenc_softmax_new(gpu, &causal, POSENC_F32, &softmax) == POSENC_OK, "posenc_softmax_new");
    PosencSoftmaxCall rows = {.version = POSENC_SOFTMAX_CALL_VERSION, .size = sizeof rows, .batch = 1, .heads = HEADS};
    rows.queries = rows.keys = KEYS;
    rows.logits.data = upload(q, LOGITS * sizeof(float));
    rows.logits.len = LOGITS;
    rows.logits.strides[0] = LOGITS;
    rows.logits.strides[1] = KEYS * KEYS;
    rows.logits.strides[2] = KEYS;
    rows.out = rows.logits;
    rows.out.data = q_y;
    rows.query_places.kind = POSENC_PLACE_LAST;
    check(posenc_softmax_apply(softmax, &rows) == POSENC_OK, "a softmax");
    check(stream_synchronize(stream) == 0 && to_host(got, q_y, LOGITS * sizeof(float)) == 0, "a copy");
    for (int row = 0; row < HEADS * KEYS; ++row) {
        double slope = row < KEYS ? 1.0 / 16 : 1.0 / 256, sum = 0.0, z[KEYS];
        int query = row % KEYS;
        for (int key = 0; key <= query; ++key) sum += z[key] = exp(0.5 * q[row * KEYS + key] + slope * (key - query));
        for (int key = 0; key < KEYS; ++key) {
            double want = key <= query ? z[key] / sum : 0.0;
            check(fabs(got[row * KEYS + key] - want) < 2e-6, "a probability");
        }
    }
    rows.key_places.kind = 9;
    refused(posenc_softmax_apply(softmax, &rows), POSENC_ARGUMENT, "the kind of a place is 9");
    causal.bias = POSENC_BIAS_T5;
    causal.value_count = 64;
    PosencSoftmax *nothing = NULL;
    refused(posenc_softmax_new(gpu, &causal, POSENC_F32, &nothing), POSENC_ARGUMENT, "values is null");
    check(posenc_softmax_free(softmax) == POSENC_OK && posenc_sinusoid_free(sinusoid) == POSENC_OK, "free");

    /* Refusals: nothing is written, and each has its sentence. */
    refused(posenc_rope_rotate(NULL, &call), POSENC_ARGUMENT, "rope is null");
    refused(posenc_rope_rotate(rope, NULL), POSENC_ARGUMENT, "call is null");
    PosencRopeCall wrong = call;
    wrong.version = 9;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "call has version 9, this library knows 1");
    wrong = call;
    wrong.size -= 8;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "version 1 has");
    wrong = call;
    wrong.q.data = 0;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "q is null");
    wrong = call;
    wrong.q.data += 2;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "its elements need multiples of 4");
    wrong = call;
    wrong.q.len -= 1;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "q holds 359 elements, the shape needs 360");
    wrong = call;
    wrong.positions.ids_len = 4;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "positions holds 4 elements, the shape needs 5");
    wrong = call;
    wrong.positions.kind = 7;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "the kind of positions is 7");
    wrong = call;
    wrong.q.heads = UINT64_MAX;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "does not fit into 63 bits");
    wrong = copy;
    wrong.q_out.data = wrong.q.data;
    refused(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "share memory");
    PosencRope *none = NULL;
    PosencRopeSpec odd = spec;
    odd.rotary = 7;
    refused(posenc_rope_new(gpu, &odd, POSENC_F32, &none), POSENC_VALUE, "rotary is 7");
    refused(posenc_rope_new(gpu, &spec, 8, &none), POSENC_ARGUMENT, "element is 8");
    refused(posenc_rope_new(NULL, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "gpu is null");
    refused(posenc_rope_new(gpu, &spec, POSENC_F32, NULL), POSENC_ARGUMENT, "out is null");
    odd = spec;
    odd.scaling = POSENC_SCALING_DIVISORS;
    odd.divisor_count = 8;
    refused(posenc_rope_new(gpu, &odd, POSENC_F32, &none), POSENC_ARGUMENT, "divisors is null");
    refused(posenc_rope_from_hf(gpu, "{", 0, 1, POSENC_F32, &none), POSENC_VALUE, "not JSON");
    refused(posenc_gpu_new(99, stream, 0, &gpu), POSENC_DEVICE, "no CUDA device");
    check(none == NULL, "a refusal gave a plan");

    check(posenc_rope_free(model) == POSENC_OK && posenc_rope_free(rope) == POSENC_OK, "free");
    check(posenc_rope_free(NULL) == POSENC_OK && posenc_gpu_free(gpu) == POSENC_OK, "free");
    puts("all is well");
    return 0;
}
