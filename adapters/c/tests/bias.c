/* Every operation of the rooms bias and attend through posenc.h, against its formula in double, with its gradients. */
#include "device.h"

enum { BATCH = 2, HEADS = 2, QUERIES = 5, KEYS = 6, ROWS = BATCH * HEADS * QUERIES, N = ROWS * KEYS };
enum { BUCKETS = 8, LEAST = -KEYS, COUNT = 2 * KEYS + 1 };

static PosencLogits logits(void) {
    return (PosencLogits){BATCH, HEADS, QUERIES, KEYS, 0, {HEADS * QUERIES * KEYS, QUERIES * KEYS, KEYS}};
}

static int head_of(int i) { return i / (QUERIES * KEYS) % HEADS; }
/* The last query at the last key: query q at KEYS - QUERIES + q. */
static int distance_of(int i) { return i % KEYS - (KEYS - QUERIES + i / KEYS % QUERIES); }

/* Writes a bias, adds it, frees it, and compares both with `want`. */
static void check_bias(PosencBias *bias, const double *want) {
    float x[N], got[N];
    fill(x, N, 1);
    PosencBiasCall call = POSENC_INIT(PosencBiasCall);
    call.x = BUFFER(x);
    call.shape = logits();
    call.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    OK(posenc_bias_add(bias, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], x[i] + want[i], 4e-6));
    OK(posenc_bias_write(bias, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], want[i], 4e-6));
    float gates[ROWS];
    fill(gates, ROWS, 9);
    call.gates = BUFFER(gates);
    OK(posenc_bias_write(bias, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], gates[i / KEYS] * want[i], 8e-6));
    call.shape.heads = 1;
    REFUSED(posenc_bias_write(bias, &call), POSENC_VALUE, "the bias has 2 heads, the logits have 1");
    call.shape = logits();
    call.places.keys.kind = 9;
    REFUSED(posenc_bias_add(bias, &call), POSENC_ARGUMENT, "the kind of a place is 9");
    OK(posenc_bias_free(bias));
}

static int bucket(int distance) {
    /* T5, bidirectional, 8 buckets up to 20: 4 for each side, 2 of them exact. */
    int n = abs(distance), base = distance > 0 ? 4 : 0;
    if (n < 2) return base + n;
    int large = 2 + (int)(log(n / 2.0) / log(20 / 2.0) * 2);
    return base + (large < 3 ? large : 3);
}

static const double in_weight[3] = {1.0, -2.0, 0.5}, in_bias[3] = {0.1, 0.7, -0.2}, out_bias[HEADS] = {0.25, -0.5};
static const double out_weight[HEADS * 3] = {1.0, 0.5, -1.5, 2.0, -1.0, 0.75};

static PosencFireSpec fire_spec(void) {
    PosencFireSpec fire = POSENC_INIT(PosencFireSpec);
    fire.c = 0.1;
    fire.threshold = 3.0;
    fire.eps = 1e-6;
    fire.width = 3;
    fire.heads = HEADS;
    fire.in_weight = in_weight;
    fire.in_bias = in_bias;
    fire.out_weight = out_weight;
    fire.out_bias = out_bias;
    fire.reach = 64;
    return fire;
}

static double fire_input(int i) {
    double query = KEYS - QUERIES + i / KEYS % QUERIES;
    return log(1.0 + 0.1 * abs(distance_of(i))) / (log(1.0 + 0.1 * fmax(query, 3.0)) + 1e-6);
}

static void biases(void) {
    double want[N];
    PosencBias *bias = NULL;
    PosencAlibiSpec alibi = POSENC_INIT(PosencAlibiSpec);
    alibi.total_heads = alibi.heads = HEADS;
    alibi.max_bias = 8.0;
    alibi.scale = 1.0;
    OK(posenc_bias_alibi_new(gpu, &alibi, POSENC_F32, &bias));
    ON(PosencBias, posenc_bias_on, posenc_bias_free, bias);
    for (int i = 0; i < N; ++i) want[i] = -abs(distance_of(i)) * (head_of(i) ? 1.0 / 256 : 1.0 / 16);
    check_bias(bias, want);
    alibi.heads = 3;
    REFUSED(posenc_bias_alibi_new(gpu, &alibi, POSENC_F32, &bias), POSENC_VALUE, "outside a model of 2 heads");
    alibi.total_heads = alibi.heads = (uint64_t)1 << 40;
    REFUSED(posenc_bias_alibi_new(gpu, &alibi, POSENC_F32, &bias), POSENC_VALUE, "1099511627776 heads, it must have at most");
    alibi.total_heads = HEADS;

    /* The same in MPT's rounding: a number per key, 0 at the last. */
    PosencKeyOnlySpec library = POSENC_INIT(PosencKeyOnlySpec);
    alibi.heads = HEADS;
    library.alibi = alibi;
    library.library = POSENC_KEY_ONLY_MPT;
    library.keys = KEYS;
    OK(posenc_bias_key_only_new(gpu, &library, POSENC_F32, &bias));
    for (int i = 0; i < N; ++i) want[i] = (i % KEYS - (KEYS - 1)) * (head_of(i) ? 1.0 / 256 : 1.0 / 16);
    check_bias(bias, want);
    library.library = 4;
    REFUSED(posenc_bias_key_only_new(gpu, &library, POSENC_F32, &bias), POSENC_ARGUMENT, "library is 4");

    const float left[HEADS] = {0.5f, 0.25f}, right[HEADS] = {2.0f, 3.0f};
    PosencSlopesSpec slopes = POSENC_INIT(PosencSlopesSpec);
    slopes.batch = 1;
    slopes.heads = HEADS;
    slopes.left = left;
    slopes.right = right;
    OK(posenc_bias_slopes_new(gpu, &slopes, POSENC_F32, &bias));
    PosencBuffer numbers;
    OK(posenc_bias_numbers(bias, 1, &numbers));
    float back[HEADS];
    download(back, numbers, sizeof back);
    CHECK(numbers.len == HEADS && memcmp(back, right, sizeof back) == 0);
    REFUSED(posenc_bias_numbers(bias, 2, &numbers), POSENC_ARGUMENT, "the bias has no numbers 2");
    for (int i = 0; i < N; ++i) {
        int d = distance_of(i);
        want[i] = d < 0 ? d * left[head_of(i)] : -d * right[head_of(i)];
    }
    check_bias(bias, want);
    slopes.left = NULL;
    REFUSED(posenc_bias_slopes_new(gpu, &slopes, POSENC_F32, &bias), POSENC_ARGUMENT, "left is null");

    /* T5, by a table of the host and by one of the device. */
    float table[BUCKETS * HEADS];
    fill(table, BUCKETS * HEADS, 2);
    PosencT5Spec t5 = POSENC_INIT(PosencT5Spec);
    t5.buckets = BUCKETS;
    t5.max_distance = 20;
    t5.heads = HEADS;
    t5.bidirectional = 1;
    t5.table = table;
    OK(posenc_bias_t5_new(gpu, &t5, POSENC_F32, &bias));
    for (int i = 0; i < N; ++i) want[i] = table[bucket(distance_of(i)) * HEADS + head_of(i)];
    check_bias(bias, want);
    t5.table = NULL;
    OK(posenc_bias_t5_new(gpu, &t5, POSENC_F32, &bias));
    PosencSetTableCall set = POSENC_INIT(PosencSetTableCall);
    set.table = BUFFER(table);
    OK(posenc_bias_set_table(bias, &set));
    set.table.len -= 1;
    REFUSED(posenc_bias_set_table(bias, &set), POSENC_VALUE, "table holds 15 elements");
    check_bias(bias, want);

    float row[HEADS * COUNT];
    fill(row, HEADS * COUNT, 3);
    PosencRowSpec spec = POSENC_INIT(PosencRowSpec);
    spec.heads = HEADS;
    spec.first = LEAST;
    spec.distances = COUNT;
    spec.values = row;
    OK(posenc_bias_row_new(gpu, &spec, POSENC_F32, &bias));
    for (int i = 0; i < N; ++i) want[i] = row[head_of(i) * COUNT + distance_of(i) - LEAST];
    check_bias(bias, want);
    spec.values = NULL;
    REFUSED(posenc_bias_row_new(gpu, &spec, POSENC_F32, &bias), POSENC_ARGUMENT, "values is null");

    const double p[HEADS] = {0.5, 1.5}, a[HEADS] = {2.0, 0.75};
    PosencKerpleSpec kerple = POSENC_INIT(PosencKerpleSpec);
    kerple.heads = HEADS;
    kerple.p = p;
    kerple.a = a;
    kerple.least = LEAST;
    kerple.most = KEYS;
    OK(posenc_bias_kerple_new(gpu, &kerple, POSENC_F32, &bias));
    for (int i = 0; i < N; ++i) want[i] = -p[head_of(i)] * log(1.0 + a[head_of(i)] * abs(distance_of(i)));
    check_bias(bias, want);
    kerple.kind = 4;
    REFUSED(posenc_bias_kerple_new(gpu, &kerple, POSENC_F32, &bias), POSENC_ARGUMENT, "kind is 4");

    PosencSandwichSpec sandwich = POSENC_INIT(PosencSandwichSpec);
    sandwich.total_heads = sandwich.heads = HEADS;
    sandwich.width = 16;
    sandwich.least = LEAST;
    sandwich.most = KEYS;
    OK(posenc_bias_sandwich_new(gpu, &sandwich, POSENC_F32, &bias));
    for (int i = 0; i < N; ++i) {
        want[i] = 0.0;
        for (int pair = 0; pair < 8; ++pair) want[i] += cos(distance_of(i) * pow(10000.0, -2.0 * pair / 16));
        want[i] *= 2.0 / (8 * (head_of(i) + 1));
    }
    check_bias(bias, want);

    PosencFireSpec fire = fire_spec();
    OK(posenc_bias_fire_new(gpu, &fire, POSENC_F32, &bias));
    for (int i = 0; i < N; ++i) {
        double x = fire_input(i), sum = out_bias[head_of(i)];
        for (int j = 0; j < 3; ++j) sum += out_weight[head_of(i) * 3 + j] * fmax(0.0, in_weight[j] * x + in_bias[j]);
        want[i] = sum;
    }
    check_bias(bias, want);
    fire.out_bias = NULL;
    REFUSED(posenc_bias_fire_new(gpu, &fire, POSENC_F32, &bias), POSENC_ARGUMENT, "out_bias is null");
}

static PosencSoftmaxSpec causal(void) {
    PosencSoftmaxSpec spec = POSENC_INIT(PosencSoftmaxSpec);
    spec.scale = 0.5f;
    spec.has_right = 1;
    return spec;
}

static void softmaxes(void) {
    /* Causal, ALiBi times a gate, a mask shared by heads and queries, a sink, copied, with its log-sum-exp. */
    float x[N], out[N] = {0}, lse[ROWS] = {0}, gates[ROWS], mask[BATCH * KEYS], sinks[HEADS] = {0.3f, -0.6f};
    fill(x, N, 4);
    fill(gates, ROWS, 5);
    fill(mask, BATCH * KEYS, 6);
    mask[3] = -INFINITY;
    PosencAlibiSpec alibi = POSENC_INIT(PosencAlibiSpec);
    alibi.total_heads = alibi.heads = HEADS;
    alibi.max_bias = 8.0;
    alibi.scale = 1.0;
    PosencBias *bias = NULL;
    OK(posenc_bias_alibi_new(gpu, &alibi, POSENC_F32, &bias));
    PosencSoftmaxSpec spec = causal();
    PosencSoftmax *softmax = NULL;
    OK(posenc_softmax_new(gpu, &spec, POSENC_F32, &softmax));
    ON(PosencSoftmax, posenc_softmax_on, posenc_softmax_free, softmax);
    PosencSoftmaxCall call = POSENC_INIT(PosencSoftmaxCall);
    call.x = BUFFER(x);
    call.shape = call.out_shape = logits();
    call.out = BUFFER(out);
    call.inputs.bias = bias;
    call.inputs.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    call.inputs.gates = BUFFER(gates);
    call.inputs.mask = BUFFER(mask);
    call.inputs.mask_shape = (PosencLogits){BATCH, 1, 1, KEYS, 0, {KEYS, KEYS, KEYS}};
    call.inputs.sinks = BUFFER(sinks);
    call.lse = BUFFER(lse);
    OK(posenc_softmax_apply(softmax, &call));
    download(out, call.out, sizeof out);
    download(lse, call.lse, sizeof lse);
    double truth[N], sums[ROWS];
    for (int row = 0; row < ROWS; ++row) {
        int head = head_of(row * KEYS);
        double slope = head ? 1.0 / 256 : 1.0 / 16;
        sums[row] = exp(sinks[head]);
        for (int key = 0; key < KEYS; ++key) {
            int i = row * KEYS + key, d = distance_of(i);
            double z = 0.5 * x[i] - gates[row] * slope * abs(d) + mask[row / (HEADS * QUERIES) * KEYS + key];
            truth[i] = d <= 0 ? exp(z) : 0.0;
            sums[row] += truth[i];
        }
        for (int key = 0; key < KEYS; ++key) truth[row * KEYS + key] /= sums[row];
        CHECK(near(lse[row], log(sums[row]), 4e-6));
    }
    for (int i = 0; i < N; ++i) CHECK(near(out[i], truth[i], 2e-6));

    /* Its gradients: of the logits, of the bias at each pair, of the sinks. */
    float g[N], bias_grad[N] = {0}, dots[ROWS] = {0}, sink_grad[HEADS] = {0}, dx[N];
    fill(g, N, 7);
    PosencSoftmaxGradCall grad = POSENC_INIT(PosencSoftmaxGradCall);
    grad.probabilities = call.out;
    grad.probabilities_shape = grad.grad_shape = logits();
    grad.grad = BUFFER(g);
    grad.inputs = call.inputs;
    grad.bias_grad = BUFFER(bias_grad);
    grad.dots = BUFFER(dots);
    OK(posenc_softmax_grad(softmax, &grad));
    download(dx, grad.grad, sizeof dx);
    download(bias_grad, grad.bias_grad, sizeof bias_grad);
    download(dots, grad.dots, sizeof dots);
    double want_sinks[HEADS] = {0.0, 0.0};
    for (int row = 0; row < ROWS; ++row) {
        double dot = 0.0;
        for (int key = 0; key < KEYS; ++key) dot += truth[row * KEYS + key] * g[row * KEYS + key];
        CHECK(near(dots[row], dot, 4e-6));
        want_sinks[head_of(row * KEYS)] -= exp(sinks[head_of(row * KEYS)]) / sums[row] * dot;
        for (int key = 0; key < KEYS; ++key) {
            int i = row * KEYS + key;
            double dz = truth[i] * (g[i] - dot);
            CHECK(near(dx[i], 0.5 * dz, 4e-6));
            /* Before its gate: the gradient of parameters takes gates of its own. */
            CHECK(near(bias_grad[i], dz, 4e-6));
        }
    }
    PosencSinkGradCall sink = POSENC_INIT(PosencSinkGradCall);
    sink.sinks = call.inputs.sinks;
    sink.lse = call.lse;
    sink.dots = grad.dots;
    sink.grad = BUFFER(sink_grad);
    sink.shape = logits();
    OK(posenc_softmax_sink_grad(softmax, &sink));
    download(sink_grad, sink.grad, sizeof sink_grad);
    for (int head = 0; head < HEADS; ++head) CHECK(near(sink_grad[head], want_sinks[head], 2e-5));

    /* Without a bias, in place, a step of a decode with lengths of its own: the second sequence has 4 keys. */
    const int32_t lengths[BATCH] = {KEYS, 4};
    PosencSoftmaxCall decode = POSENC_INIT(PosencSoftmaxCall);
    decode.x = BUFFER(x);
    decode.shape = (PosencLogits){BATCH, HEADS, 1, KEYS, 0, {HEADS * KEYS, KEYS, KEYS}};
    decode.inputs.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    decode.inputs.places.keys.lengths = BUFFER(lengths);
    OK(posenc_softmax_apply(softmax, &decode));
    download(out, decode.x, sizeof out);
    for (int row = 0; row < BATCH * HEADS; ++row) {
        int keys = lengths[row / HEADS];
        double sum = 0.0;
        for (int key = 0; key < keys; ++key) sum += exp(0.5 * x[row * KEYS + key]);
        for (int key = 0; key < KEYS; ++key) {
            CHECK(near(out[row * KEYS + key], key < keys ? exp(0.5 * x[row * KEYS + key]) / sum : 0.0, 2e-6));
        }
    }

    /* Packed: the batch's two sequences as one, 2 and 3 queries against 2 and 4 keys, causal in each. */
    const int32_t first_queries[3] = {0, 2, 5}, first_keys[3] = {0, 2, 6};
    PosencSoftmaxCall packed = POSENC_INIT(PosencSoftmaxCall);
    CHECK(to_device(call.x.data, x, sizeof x) == 0);
    packed.x = call.x;
    packed.shape = logits();
    packed.shape.batch = 1;
    packed.inputs.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    packed.inputs.places.sequences = 2;
    packed.inputs.places.packed_queries = BUFFER(first_queries);
    packed.inputs.places.packed_keys = BUFFER(first_keys);
    OK(posenc_softmax_apply(softmax, &packed));
    download(out, packed.x, sizeof out);
    for (int row = 0; row < HEADS * QUERIES; ++row) {
        int query = row % QUERIES, second = query >= 2;
        /* The last query of each sequence sees its last key. */
        int begin = second ? 2 : 0, end = second ? 6 - (4 - query) : query + 1;
        double sum = 0.0;
        for (int key = begin; key < end; ++key) sum += exp(0.5 * x[row * KEYS + key]);
        for (int key = 0; key < KEYS; ++key) {
            double want = key >= begin && key < end ? exp(0.5 * x[row * KEYS + key]) / sum : 0.0;
            CHECK(near(out[row * KEYS + key], want, 2e-6));
        }
    }
    packed.inputs.places.packed_keys.data = 0;
    REFUSED(posenc_softmax_apply(softmax, &packed), POSENC_ARGUMENT, "packed_keys is null");

    REFUSED(posenc_softmax_apply(NULL, &call), POSENC_ARGUMENT, "softmax is null");
    PosencSoftmaxCall wrong = call;
    wrong.inputs.places.keys.kind = 9;
    REFUSED(posenc_softmax_apply(softmax, &wrong), POSENC_ARGUMENT, "the kind of a place is 9");
    wrong = call;
    wrong.out.data = wrong.x.data + sizeof(float);
    REFUSED(posenc_softmax_apply(softmax, &wrong), POSENC_VALUE, "probabilities");
    PosencSoftmax *half = NULL, *none = NULL;
    OK(posenc_softmax_new(gpu, &spec, POSENC_F16, &half));
    REFUSED(posenc_softmax_apply(half, &call), POSENC_ARGUMENT, "the bias is for f32, the logits are f16");
    spec.scale = 0.0f;
    REFUSED(posenc_softmax_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "scale is 0");
    spec.scale = 0.5f;
    spec.order = 7;
    REFUSED(posenc_softmax_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "order is 7");
    spec = causal();
    spec.softcap = -1.0f;
    REFUSED(posenc_softmax_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "softcap is -1");
    spec.softcap = 5.0f;
    OK(posenc_softmax_new(gpu, &spec, POSENC_F32, &none));
    REFUSED(posenc_softmax_grad(none, &grad), POSENC_VALUE, "needs the logits before the softmax");
    OK(posenc_softmax_free(none));
    OK(posenc_softmax_free(half));
    OK(posenc_softmax_free(softmax));
    OK(posenc_bias_free(bias));
}

static void run_grad(PosencDistanceGrad *plan, PosencBuffer g, const double *want, int n, double most) {
    uint64_t len = 0;
    OK(posenc_distance_grad_len(plan, &len));
    CHECK(len == (uint64_t)n);
    float got[64] = {0};
    PosencDistanceGradCall call = POSENC_INIT(PosencDistanceGradCall);
    call.grad = g;
    call.shape = logits();
    call.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    call.out = (PosencBuffer){upload(got, sizeof got), len};
    call.factor = 2.0f;
    OK(posenc_distance_grad_apply(plan, &call));
    download(got, call.out, n * sizeof(float));
    for (int i = 0; i < n; ++i) CHECK(near(got[i], 2.0 * want[i], most));
    call.out.len -= 1;
    REFUSED(posenc_distance_grad_apply(plan, &call), POSENC_VALUE, "elements, the shape needs");
    OK(posenc_distance_grad_free(plan));
}

static void distance_grads(void) {
    float g[N];
    fill(g, N, 8);
    PosencBuffer buffer = BUFFER(g);
    PosencLogits max_shape = logits();
    PosencDistanceGrad *plan = NULL;

    PosencT5Spec t5 = POSENC_INIT(PosencT5Spec);
    t5.buckets = BUCKETS;
    t5.max_distance = 20;
    t5.heads = HEADS;
    t5.bidirectional = 1;
    OK(posenc_distance_grad_t5_new(gpu, &t5, &max_shape, POSENC_F32, &plan));
    ON(PosencDistanceGrad, posenc_distance_grad_on, posenc_distance_grad_free, plan);
    double table[BUCKETS * HEADS] = {0};
    for (int i = 0; i < N; ++i) table[bucket(distance_of(i)) * HEADS + head_of(i)] += g[i];
    run_grad(plan, buffer, table, BUCKETS * HEADS, 1e-4);

    PosencSlopesGradSpec slopes = POSENC_INIT(PosencSlopesGradSpec);
    slopes.heads = HEADS;
    OK(posenc_distance_grad_slopes_new(gpu, &slopes, &max_shape, POSENC_F32, &plan));
    double sides[2 * HEADS] = {0};
    for (int i = 0; i < N; ++i) {
        int d = distance_of(i);
        sides[(d > 0) * HEADS + head_of(i)] += d <= 0 ? d * g[i] : -d * g[i];
    }
    run_grad(plan, buffer, sides, 2 * HEADS, 1e-3);

    PosencRowSpec row = POSENC_INIT(PosencRowSpec);
    row.heads = HEADS;
    row.first = LEAST;
    row.distances = COUNT;
    OK(posenc_distance_grad_row_new(gpu, &row, &max_shape, POSENC_F32, &plan));
    double numbers[HEADS * COUNT] = {0};
    for (int i = 0; i < N; ++i) numbers[head_of(i) * COUNT + distance_of(i) - LEAST] += g[i];
    run_grad(plan, buffer, numbers, HEADS * COUNT, 1e-4);

    const double p[HEADS] = {0.5, 1.5}, a[HEADS] = {2.0, 0.75};
    PosencKerpleSpec kerple = POSENC_INIT(PosencKerpleSpec);
    kerple.heads = HEADS;
    kerple.p = p;
    kerple.a = a;
    kerple.least = LEAST;
    kerple.most = KEYS;
    OK(posenc_distance_grad_kerple_new(gpu, &kerple, &max_shape, POSENC_F32, &plan));
    double both[2 * HEADS] = {0};
    for (int i = 0; i < N; ++i) {
        int h = head_of(i), d = abs(distance_of(i));
        both[h] -= g[i] * log(1.0 + a[h] * d);
        both[HEADS + h] -= g[i] * p[h] * d / (1.0 + a[h] * d);
    }
    run_grad(plan, buffer, both, 2 * HEADS, 1e-3);
    PosencFireSpec fire = fire_spec();
    PosencFireGrad *network = NULL;
    OK(posenc_fire_grad_new(gpu, &fire, &max_shape, POSENC_F32, &network));
    ON(PosencFireGrad, posenc_fire_grad_on, posenc_fire_grad_free, network);
    uint64_t len = 0;
    OK(posenc_fire_grad_len(network, &len));
    CHECK(len == 2 + 3 + 3 + HEADS * 3 + HEADS);
    float got[2 + 3 + 3 + HEADS * 3 + HEADS] = {0};
    PosencDistanceGradCall call = POSENC_INIT(PosencDistanceGradCall);
    call.grad = buffer;
    call.shape = logits();
    call.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    call.out = BUFFER(got);
    call.factor = 1.0f;
    OK(posenc_fire_grad_apply(network, &call));
    download(got, call.out, sizeof got);
    double layers[3 + 3 + HEADS * 3 + HEADS] = {0};
    for (int i = 0; i < N; ++i) {
        int h = head_of(i);
        for (int j = 0; j < 3; ++j) {
            double ramp = in_weight[j] * fire_input(i) + in_bias[j];
            if (ramp <= 0.0) continue;
            layers[j] += g[i] * out_weight[h * 3 + j] * fire_input(i);
            layers[3 + j] += g[i] * out_weight[h * 3 + j];
            layers[6 + h * 3 + j] += g[i] * ramp;
        }
        layers[6 + HEADS * 3 + h] += g[i];
    }
    for (int i = 0; i < 6 + HEADS * 4; ++i) CHECK(near(got[2 + i], layers[i], 1e-3));
    call.out.len -= 1;
    REFUSED(posenc_fire_grad_apply(network, &call), POSENC_VALUE, "out holds 15 elements");
    OK(posenc_fire_grad_free(network));

    REFUSED(posenc_distance_grad_t5_new(gpu, &t5, NULL, POSENC_F32, &plan), POSENC_ARGUMENT, "max_shape is null");
}

int main(void) {
    open_device();
    biases();
    softmaxes();
    distance_grads();
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
