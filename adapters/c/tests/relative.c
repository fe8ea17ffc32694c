/* Gradients of terms, products of states and a table, Swin v2's network, gates of a forgetting attention, relative values,
   scales of heads and resized tables through posenc.h, against their formulas in double, and what is refused. */
#include "device.h"

enum { BATCH = 2, HEADS = 2, TOKENS = 12, ROWS = BATCH * HEADS * TOKENS, N = ROWS * TOKENS, MOST = ROWS * 48 };

static PosencLogits logits(void) {
    return (PosencLogits){BATCH, HEADS, TOKENS, TOKENS, 0, {HEADS * TOKENS * TOKENS, TOKENS * TOKENS, TOKENS}};
}

static int batch_of(int i) { return i / (HEADS * TOKENS * TOKENS); }
static int head_of(int i) { return i / (TOKENS * TOKENS) % HEADS; }
static int query_of(int i) { return i / TOKENS % TOKENS; }
static int key_of(int i) { return i % TOKENS; }
/* Sequence, head and key. */
static int key_row_of(int i) { return i / (TOKENS * TOKENS) * TOKENS + key_of(i); }

/* Sums in double, and the sizes of what they add. */
typedef struct Sums {
    double sum[MOST], size[MOST];
} Sums;

static void add(Sums *sums, int at, double x) {
    sums->sum[at] += x;
    sums->size[at] += fabs(x);
}

/* Results of f32 or bf16. */
static void check_sums_of(const Sums *want, PosencBuffer got, uint32_t element, double most) {
    static float out[MOST];
    static uint16_t halves[MOST];
    if (element == POSENC_BF16) download(halves, got, got.len * sizeof halves[0]);
    else download(out, got, got.len * sizeof out[0]);
    for (uint64_t i = 0; i < got.len; ++i) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        if (element == POSENC_BF16) memcpy(&out[i], &bits, sizeof bits);
        CHECK(near(out[i], want->sum[i], most * want->size[i] + 1e-30));
    }
}

static void check_sums(const Sums *want, PosencBuffer got, double most) { check_sums_of(want, got, POSENC_F32, most); }

/* Numbers of f32, or of bf16, whose values they then become. */
static PosencBuffer numbers_of(float *x, int n, uint32_t element) {
    static uint16_t halves[MOST];
    for (int i = 0; i < n && element == POSENC_BF16; ++i) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
        bits &= 0xffff0000u;
        memcpy(&x[i], &bits, sizeof bits);
    }
    if (element == POSENC_BF16) return (PosencBuffer){upload(halves, (size_t)n * sizeof halves[0]), (uint64_t)n};
    return (PosencBuffer){upload(x, (size_t)n * sizeof x[0]), (uint64_t)n};
}

/* A buffer of `n` numbers that no result has. */
static PosencBuffer empty(uint64_t n) {
    static float values[MOST];
    for (int i = 0; i < MOST; ++i) values[i] = 1e9f;
    return (PosencBuffer){upload(values, n * sizeof(float)), n};
}

static int clamp(int n, int least, int most) { return n < least ? least : n > most ? most : n; }

/* -------------------------------------------------------------------------------------------------- gradients of terms */

/* The number that pair `i` reads, as an index of the gradient; -1: none. */
typedef int (*Reads)(int i);

static int swin(int i) {
    int q = query_of(i), k = key_of(i);
    return ((q / 4 - k / 4 + 2) * 7 + q % 4 - k % 4 + 3) * HEADS + head_of(i);
}
static int vits(int i) {
    int n = key_of(i) - query_of(i) + 4;
    return n < 0 || n > 8 ? -1 : i / TOKENS * 9 + n;
}
static int deberta_keys(int i) { return key_row_of(i) * 16 + clamp(query_of(i) - key_of(i) + 8, 0, 15); }
static int query_end(int i) { return i / TOKENS; }
static int key_end(int i) { return key_row_of(i); }
static int whole(int i) { return i % (N / BATCH); }
/* Pairs of one remainder share a number, the last remainder has none. */
static int given(int i) { return i % (TOKENS * TOKENS) % 6 == 5 ? -1 : i % (TOKENS * TOKENS) % 6 * HEADS + head_of(i); }

static PosencTermGrad *term_grad_of(PosencTerm term) {
    PosencTermGradSpec spec = POSENC_INIT(PosencTermGradSpec);
    PosencLogits max_shape = logits();
    spec.term = term;
    PosencTermGrad *grad = NULL;
    OK(posenc_term_grad_new(gpu, &spec, &max_shape, POSENC_F32, &grad));
    ON(PosencTermGrad, posenc_term_grad_on, posenc_term_grad_free, grad);
    return grad;
}

static PosencTermGradCall term_grad_call(PosencNumbers shape, const float *g) {
    PosencTermGradCall call = POSENC_INIT(PosencTermGradCall);
    call.grad = (PosencBuffer){upload(g, N * sizeof(float)), N};
    call.shape = logits();
    call.out = empty(shape.batch * shape.heads * shape.rows * shape.entries);
    call.out_shape = shape;
    call.factor = 0.5f;
    return call;
}

static void check_term_grad(PosencTerm term, PosencIds indices, PosencNumbers shape, Reads reads) {
    float g[N], gates[ROWS];
    fill(g, N, 1);
    fill(gates, ROWS, 2);
    PosencTermGrad *grad = term_grad_of(term);
    PosencTermGradCall call = term_grad_call(shape, g);
    call.inputs.indices = indices;
    call.gates = BUFFER(gates);
    int keys = reads == key_end;
    OK(keys ? posenc_term_grad_apply_keys(grad, &call) : posenc_term_grad_apply(grad, &call));
    static Sums want;
    memset(&want, 0, sizeof want);
    for (int i = 0; i < N; ++i) {
        double factor = 0.5 * term.factor * (keys ? -1.0 : 1.0);
        if (reads(i) >= 0) add(&want, reads(i), factor * gates[i / TOKENS] * g[i]);
    }
    check_sums(&want, call.out, 2e-6);
    OK(posenc_term_grad_free(grad));
}

static PosencTerm term_of(uint32_t kind) {
    PosencTerm term;
    memset(&term, 0, sizeof term);
    term.kind = kind;
    term.factor = 1.0f;
    return term;
}

static void gradients_of_terms(void) {
    const PosencIds none = {0, 0, 0, 0};
    PosencTerm term;
    OK(posenc_term_swin(3, 4, &term));
    term.factor = -0.75f;
    check_term_grad(term, none, table(HEADS, 35), swin);
    OK(posenc_term_vits(4, &term));
    check_term_grad(term, none, rows(BATCH, HEADS, TOKENS, 9), vits);
    OK(posenc_term_deberta_v1(8, &term));
    term.by = POSENC_BY_KEYS;
    check_term_grad(term, none, rows(BATCH, HEADS, TOKENS, 16), deberta_keys);
    term = term_of(POSENC_TERM_ENDPOINTS);
    check_term_grad(term, none, rows(BATCH, HEADS, TOKENS, 1), query_end);
    check_term_grad(term, none, rows(BATCH, HEADS, TOKENS, 1), key_end);
    check_term_grad(term_of(POSENC_TERM_WHOLE), none, rows(1, HEADS, TOKENS, TOKENS), whole);
    int32_t indices[TOKENS * TOKENS];
    for (int i = 0; i < TOKENS * TOKENS; ++i) indices[i] = i % 6;
    PosencBuffer buffer = BUFFER(indices);
    term = term_of(POSENC_TERM_GIVEN);
    term.given = (PosencGiven){TOKENS, TOKENS, 5};
    check_term_grad(term, (PosencIds){buffer.data, buffer.len, POSENC_I32, 0}, table(HEADS, 5), given);
}

static void refused_gradients_of_terms(void) {
    PosencTermGradSpec spec = POSENC_INIT(PosencTermGradSpec);
    PosencLogits max_shape = logits();
    PosencTermGrad *grad = NULL;
#define REFUSED_PLAN(status, part) REFUSED(posenc_term_grad_new(gpu, &spec, &max_shape, POSENC_F32, &grad), status, part)
    spec.term = term_of(POSENC_TERM_SHIFTED);
    spec.term.shifted = (PosencShiftedWindows){6, 6, {3, 3}, {1, 1}};
    REFUSED_PLAN(POSENC_VALUE, "a term by shifted windows reads no numbers, there is no gradient");
    spec.term.kind = 9;
    REFUSED_PLAN(POSENC_ARGUMENT, "the kind of a term is 9");

    float g[N];
    fill(g, N, 3);
    PosencTerm term;
    OK(posenc_term_swin(3, 4, &term));
    grad = term_grad_of(term);
    const PosencTermGradCall good = term_grad_call(table(HEADS, 35), g);
    PosencTermGradCall call = good;
#define REFUSED_GRAD(status, part) REFUSED(posenc_term_grad_apply(grad, &call), status, part), call = good
    REFUSED(posenc_term_grad_apply_keys(grad, &call), POSENC_VALUE, "has no numbers of the keys' ends");
    call.factor = 0.0f;
    REFUSED_GRAD(POSENC_ARGUMENT, "factor is 0, it must be set");
    call.inputs.numbers = call.out;
    call.inputs.numbers_shape = call.out_shape;
    REFUSED_GRAD(POSENC_VALUE, "the gradient of a term does not depend on its numbers: leave them out");
    call.out_shape.entries = 34;
    REFUSED_GRAD(POSENC_VALUE, "the numbers of a term are");
    call.out.len -= 1;
    REFUSED_GRAD(POSENC_VALUE, "out");
    call.out.data = call.grad.data;
    REFUSED_GRAD(POSENC_VALUE, "out");
    OK(posenc_term_grad_free(grad));
}

/* -------------------------------------------------------------------------------------- products of states and a table */

enum { CHANNELS = 20, STATES = BATCH * TOKENS * HEADS * CHANNELS, BUCKETS = 8, POSITIONS = 12 };

/* The entry of pair `i`. */
static int conformer(int i) { return key_of(i) - query_of(i) + TOKENS - 1; }
static int deberta(int i) {
    int n = query_of(i) - key_of(i), mid = BUCKETS / 2, size = abs(n);
    double share = log((double)size / mid) / log((POSITIONS - 1.0) / mid);
    if (size > mid) n = (n < 0 ? -1 : 1) * (mid + (int)ceil(share * (mid - 1)));
    return clamp(n + BUCKETS, 0, 2 * BUCKETS - 1);
}

/* Adds `factor * (a + v) . R` of every pair. */
static void add_products(const PosencTerm *term, Reads entry, uint64_t entries, const float *a, const float *v,
                         const float *vectors, Sums *want) {
    for (int i = 0; i < N; ++i) {
        int token = term->by == POSENC_BY_KEYS ? key_of(i) : query_of(i);
        int state = ((batch_of(i) * TOKENS + token) * HEADS + head_of(i)) * CHANNELS;
        int row = (head_of(i) * (int)entries + entry(i)) * CHANNELS;
        for (int c = 0; c < CHANNELS; ++c) {
            double sum = (double)a[state + c] + (v == NULL ? 0.0 : v[head_of(i) * CHANNELS + c]);
            add(want, i, term->factor * sum * vectors[row + c]);
        }
    }
}

static void refused_products(const PosencRelativeProducts *products, PosencRelativeProductsCall call) {
    const PosencRelativeProductsCall good = call;
#define REFUSED_PRODUCTS(status, part) REFUSED(posenc_relative_products_add(products, &call), status, part), call = good
    call.bias = (PosencBuffer){call.states.data, HEADS * CHANNELS - 1};
    REFUSED_PRODUCTS(POSENC_VALUE, "bias holds 39 elements, the shape needs 40");
    call.table_shape.rows -= 1;
    REFUSED_PRODUCTS(POSENC_VALUE, "the table is [1, 2, ");
    call.states_shape.tokens -= 1;
    REFUSED_PRODUCTS(POSENC_VALUE, "states are [2, 11, 2, 20], they must be [2, 12, 2, at most 65536]");
    call.states.data = call.x.data;
    REFUSED_PRODUCTS(POSENC_VALUE, "states");
    call.table.data = 0;
    REFUSED_PRODUCTS(POSENC_ARGUMENT, "table is null");
}

static void check_products(PosencTerm term, Reads entry, int has_v, uint32_t element) {
    static float x[N], a[STATES], vectors[HEADS * (2 * TOKENS) * CHANNELS];
    float v[HEADS * CHANNELS];
    uint64_t entries = 0;
    OK(posenc_term_entries(&term, &entries));
    fill(x, N, 60);
    fill(a, STATES, 61);
    fill(vectors, HEADS * (2 * TOKENS) * CHANNELS, 62);
    fill(v, HEADS * CHANNELS, 63);
    PosencRelativeProductsSpec spec = POSENC_INIT(PosencRelativeProductsSpec);
    spec.term = term;
    PosencRelativeProducts *products = NULL;
    OK(posenc_relative_products_new(gpu, &spec, element, &products));
    ON(PosencRelativeProducts, posenc_relative_products_on, posenc_relative_products_free, products);
    PosencRelativeProductsCall call = POSENC_INIT(PosencRelativeProductsCall);
    call.x = numbers_of(x, N, element);
    call.shape = logits();
    call.states = numbers_of(a, STATES, element);
    call.states_shape = (PosencHeads){
        BATCH, TOKENS, HEADS, CHANNELS, 0, {TOKENS * HEADS * CHANNELS, HEADS * CHANNELS, CHANNELS}};
    if (has_v) call.bias = BUFFER(v);
    call.table = numbers_of(vectors, HEADS * (int)entries * CHANNELS, element);
    call.table_shape = rows(1, HEADS, entries, CHANNELS);

    /* bf16 rounds a sum with v, and the result, to 8 bits. */
    double most = element == POSENC_F32 ? 3e-6 : (has_v ? 2.0 : 1.0) / 256.0 + 1e-5;
    static Sums want;
    memset(&want, 0, sizeof want);
    add_products(&term, entry, entries, a, has_v ? v : NULL, vectors, &want);
    PosencRelativeProductsCall write = call;
    write.x = empty(N);
    OK(posenc_relative_products_write(products, &write));
    check_sums_of(&want, write.x, element, most);
    for (int i = 0; i < N; ++i) add(&want, i, x[i]);
    OK(posenc_relative_products_add(products, &call));
    check_sums_of(&want, call.x, element, most);
    refused_products(products, call);
    OK(posenc_relative_products_free(products));
}

static void products_of_states(void) {
    PosencTerm term;
    for (uint32_t element = POSENC_F32; element <= POSENC_BF16; element += POSENC_BF16) {
        OK(posenc_term_conformer(TOKENS, &term));
        term.factor = 0.125f;
        check_products(term, conformer, 1, element);
        OK(posenc_term_deberta(BUCKETS, POSITIONS, &term));
        term.by = POSENC_BY_KEYS;
        term.factor = -0.75f;
        check_products(term, deberta, 0, element);
    }
    PosencRelativeProductsSpec spec = POSENC_INIT(PosencRelativeProductsSpec);
    PosencRelativeProducts *products = NULL;
#define REFUSED_SPEC(status, part) REFUSED(posenc_relative_products_new(gpu, &spec, POSENC_F32, &products), status, part)
    OK(posenc_term_decomposed(3, 4, POSENC_WINDOW_ROWS, &spec.term));
    REFUSED_SPEC(POSENC_ARGUMENT, "the kind of a term of products is 2, it must be POSENC_TERM_DISTANCE");
    OK(posenc_term_shaw(3, 2, &spec.term));
    spec.term.by = POSENC_BY_TABLE;
    REFUSED_SPEC(POSENC_VALUE, "products are by Table, they must be by Queries or Keys");
    spec.term.factor = 0.0f;
    REFUSED_SPEC(POSENC_ARGUMENT, "factor is 0, it must be set");
}

/* ------------------------------------------------------------------------------------------------------------- Swin v2 */

enum { HIDDEN = 5, NET_HEADS = 3, ENTRIES = 5 * 7, WEIGHTS = 4 };
static const int sizes[WEIGHTS] = {2 * HIDDEN, HIDDEN, NET_HEADS * HIDDEN, NET_HEADS};

/* The coordinate of a distance on an axis, 0 of rows and 1 of columns. */
static double coordinate(const PosencSwin2Spec *spec, int axis, int distance) {
    double n = abs(distance), sign = distance < 0 ? -1.0 : 1.0;
    if (spec->coordinates == POSENC_LOG_COORDINATES_ABSOLUTE) return sign * log(1.0 + n);
    double size = (double)(spec->pretrained[0] ? spec->pretrained : spec->window)[axis];
    return sign * log2(1.0 + 8.0 * n / (size - 1.0)) / log2(8.0);
}

/* The network at an entry: coordinates, hidden layer before its limit, and outputs. */
typedef struct Net {
    double at[2], hidden[HIDDEN], out[NET_HEADS];
} Net;

static Net net_at(const PosencSwin2Spec *spec, float (*const w)[NET_HEADS * HIDDEN], int has_b2, int entry) {
    Net net = {{coordinate(spec, 0, entry / 7 - 2), coordinate(spec, 1, entry % 7 - 3)}, {0}, {0}};
    for (int k = 0; k < HIDDEN; ++k) net.hidden[k] = w[0][2 * k] * net.at[0] + w[0][2 * k + 1] * net.at[1] + w[1][k];
    for (int h = 0; h < NET_HEADS; ++h) {
        net.out[h] = has_b2 ? w[3][h] : 0.0;
        for (int k = 0; k < HIDDEN; ++k) net.out[h] += w[2][h * HIDDEN + k] * fmax(0.0, net.hidden[k]);
    }
    return net;
}

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

/* Adds an entry's part to the gradients of the weights. */
static void add_net_grad(const Net *net, float limit, float (*const w)[NET_HEADS * HIDDEN], const float *g, Sums *want) {
    for (int h = 0; h < NET_HEADS; ++h) {
        double s = sigmoid(net->out[h]), back = g[h] * (limit > 0.0f ? limit * s * (1.0 - s) : 1.0);
        add(&want[3], h, back);
        for (int k = 0; k < HIDDEN; ++k) {
            if (net->hidden[k] <= 0.0) continue;
            double inner = back * w[2][h * HIDDEN + k];
            add(&want[2], h * HIDDEN + k, back * net->hidden[k]);
            add(&want[1], k, inner);
            for (int axis = 0; axis < 2; ++axis) add(&want[0], 2 * k + axis, inner * net->at[axis]);
        }
    }
}

static PosencSwin2Spec swin2_spec(void) {
    PosencSwin2Spec spec = POSENC_INIT(PosencSwin2Spec);
    spec.window[0] = 3;
    spec.window[1] = 4;
    spec.hidden = HIDDEN;
    spec.heads = NET_HEADS;
    spec.limit = 16.0f;
    return spec;
}

static void check_swin2(PosencSwin2Spec spec, int has_b2, uint32_t element) {
    float w[WEIGHTS][NET_HEADS * HIDDEN], g[ENTRIES * NET_HEADS], got[ENTRIES * NET_HEADS];
    PosencSwin2Call call = POSENC_INIT(PosencSwin2Call);
    PosencSwin2GradCall grad = POSENC_INIT(PosencSwin2GradCall);
    PosencBuffer *weights[WEIGHTS] = {&call.weights.w1, &call.weights.b1, &call.weights.w2, &call.weights.b2};
    PosencBuffer *out[WEIGHTS] = {&grad.out.w1, &grad.out.b1, &grad.out.w2, &grad.out.b2};
    for (int i = 0; i < WEIGHTS - !has_b2; ++i) {
        fill(w[i], sizes[i], 10 + i);
        *weights[i] = numbers_of(w[i], sizes[i], element);
        *out[i] = empty((uint64_t)sizes[i]);
    }
    fill(g, ENTRIES * NET_HEADS, 14);
    PosencSwin2 *swin2 = NULL;
    OK(posenc_swin2_new(gpu, &spec, element, &swin2));
    ON(PosencSwin2, posenc_swin2_on, posenc_swin2_free, swin2);
    call.table = empty(ENTRIES * NET_HEADS);
    OK(posenc_swin2_write(swin2, &call));
    grad.weights = call.weights;
    grad.table_grad = BUFFER(g);
    OK(posenc_swin2_grad(swin2, &grad));

    static Sums want[WEIGHTS];
    memset(want, 0, sizeof want);
    download(got, call.table, sizeof got);
    for (int entry = 0; entry < ENTRIES; ++entry) {
        Net net = net_at(&spec, w, has_b2, entry);
        for (int h = 0; h < NET_HEADS; ++h) {
            double z = spec.limit > 0.0f ? spec.limit * sigmoid(net.out[h]) : net.out[h];
            CHECK(near(got[entry * NET_HEADS + h], z, 5e-5));
        }
        add_net_grad(&net, spec.limit, w, g + entry * NET_HEADS, want);
    }
    for (int i = 0; i < WEIGHTS - !has_b2; ++i) check_sums(&want[i], *out[i], 2e-5);
    OK(posenc_swin2_free(swin2));
}

static void networks_of_swin2(void) {
    PosencSwin2Spec spec = swin2_spec();
    check_swin2(spec, 0, POSENC_F32);
    check_swin2(spec, 0, POSENC_BF16);
    spec.pretrained[0] = spec.pretrained[1] = 6;
    check_swin2(spec, 1, POSENC_F32);
    spec.limit = 0.0f;
    spec.coordinates = POSENC_LOG_COORDINATES_ABSOLUTE;
    check_swin2(spec, 1, POSENC_F32);
}

static void refused_networks(void) {
    PosencSwin2 *swin2 = NULL;
    PosencSwin2Spec spec = swin2_spec();
#define REFUSED_NET(status, part) REFUSED(posenc_swin2_new(gpu, &spec, POSENC_F32, &swin2), status, part), spec = swin2_spec()
    spec.coordinates = 2;
    REFUSED_NET(POSENC_ARGUMENT, "coordinates is 2");
    spec.window[1] = 1;
    REFUSED_NET(POSENC_VALUE, "a window of 3 x 1 tokens, both must be at least 2");
    spec.pretrained[0] = 8;
    REFUSED_NET(POSENC_VALUE, "a window of 8 x 0 tokens, both must be at least 2");
    spec.hidden = 0;
    REFUSED_NET(POSENC_VALUE, "a network of 0 hidden units and 3 heads");
    spec.limit = -16.0f;
    REFUSED_NET(POSENC_VALUE, "limit is -16, it must be finite and above 0");
    OK(posenc_swin2_new(gpu, &spec, POSENC_F32, &swin2));
    PosencSwin2Call call = POSENC_INIT(PosencSwin2Call);
    REFUSED(posenc_swin2_write(swin2, &call), POSENC_VALUE,
            on_cpu ? "w1 has 0 elements, the network has 10" : "w1 holds 0 elements, the shape needs 10");
    PosencSwin2GradCall grad = POSENC_INIT(PosencSwin2GradCall);
    grad.weights.w1 = (PosencBuffer){0, 10};
    REFUSED(posenc_swin2_grad(swin2, &grad), POSENC_ARGUMENT, "w1 is null");
    OK(posenc_swin2_free(swin2));
}

/* Cosine attention: a factor for each head, and the gradient of the cosines. */
static void scales_of_heads(void) {
    float x[N], g[N], out[N], dx[N], scales[HEADS] = {posenc_swin2_logit_scale(logf(3.0f)), posenc_swin2_logit_scale(9.0f)};
    CHECK(near(scales[0], 3.0, 1e-6) && scales[1] == 100.0f);
    fill(x, N, 20);
    fill(g, N, 21);
    PosencSoftmaxSpec spec = POSENC_INIT(PosencSoftmaxSpec);
    spec.scale = 0.125f;
    PosencSoftmax *softmax = NULL;
    OK(posenc_softmax_new(gpu, &spec, POSENC_F32, &softmax));
    PosencSoftmaxCall call = POSENC_INIT(PosencSoftmaxCall);
    call.x = BUFFER(x);
    call.shape = call.out_shape = logits();
    call.out = empty(N);
    call.inputs.scales = BUFFER(scales);
    OK(posenc_softmax_apply(softmax, &call));
    download(out, call.out, sizeof out);
    PosencSoftmaxGradCall grad = POSENC_INIT(PosencSoftmaxGradCall);
    grad.probabilities = call.out;
    grad.probabilities_shape = grad.grad_shape = call.shape;
    grad.grad = BUFFER(g);
    grad.inputs = call.inputs;
    OK(posenc_softmax_grad(softmax, &grad));
    download(dx, grad.grad, sizeof dx);
    for (int row = 0; row < ROWS; ++row) {
        double truth[TOKENS], sum = 0.0, dot = 0.0, scale = 0.125 * scales[row / TOKENS % HEADS];
        for (int k = 0; k < TOKENS; ++k) sum += truth[k] = exp(scale * x[row * TOKENS + k]);
        for (int k = 0; k < TOKENS; ++k) dot += (truth[k] /= sum) * g[row * TOKENS + k];
        for (int k = 0; k < TOKENS; ++k) {
            CHECK(near(out[row * TOKENS + k], truth[k], 6e-6));
            CHECK(near(dx[row * TOKENS + k], scale * truth[k] * (g[row * TOKENS + k] - dot), 2e-4));
        }
    }
    call.inputs.scales.len = HEADS - 1;
    REFUSED(posenc_softmax_apply(softmax, &call), POSENC_VALUE,
            on_cpu ? "there are 1 scales for 2 heads" : "scales holds 1 elements, the shape needs 2");
    OK(posenc_softmax_free(softmax));
}

/* --------------------------------------------------------------------------------------------------------------- gates */

static PosencGateSums *gate_sums_of(uint32_t gates, uint32_t element) {
    PosencGateSumsSpec spec = POSENC_INIT(PosencGateSumsSpec);
    spec.gates = gates;
    PosencGateSums *sums = NULL;
    OK(posenc_gate_sums_new(gpu, &spec, element, &sums));
    ON(PosencGateSums, posenc_gate_sums_on, posenc_gate_sums_free, sums);
    return sums;
}

static PosencGateSumsCall gate_sums_call(const float *x) {
    PosencGateSumsCall call = POSENC_INIT(PosencGateSumsCall);
    call.gates = (PosencBuffer){upload(x, ROWS * sizeof(float)), ROWS};
    call.gates_shape = rows(BATCH, HEADS, TOKENS, 1);
    call.out = empty(2 * ROWS);
    call.out_shape = rows(BATCH, HEADS, TOKENS, 2);
    return call;
}

/* Two chunks that hand on a state have the bits of the whole. */
static void chunks_of_gates(const PosencGateSums *sums, PosencGateSumsCall call, const float *whole) {
    static const uint64_t zeros[BATCH * HEADS * 2] = {0};
    const uint64_t first = 5;
    float got[2 * ROWS];
    call.out = empty(2 * ROWS);
    call.state = BUFFER(zeros);
    call.gates_shape.rows = call.out_shape.rows = first;
    OK(posenc_gate_sums_write(sums, &call));
    call.gates_shape.rows = call.out_shape.rows = TOKENS - first;
    call.gates_shape.offset = first;
    call.out_shape.offset = 2 * first;
    OK(posenc_gate_sums_write(sums, &call));
    download(got, call.out, sizeof got);
    CHECK(memcmp(got, whole, sizeof got) == 0);
    call.state.len -= 1;
    REFUSED(posenc_gate_sums_write(sums, &call), POSENC_VALUE, "state holds 7 elements, the shape needs 8");
}

/* The sums as the ends of a term. */
static void bias_of_gates(PosencGateSumsCall call, const double *want) {
    PosencTerm term = term_of(POSENC_TERM_ENDPOINTS);
    PosencTermsSpec spec = POSENC_INIT(PosencTermsSpec);
    spec.terms = &term;
    spec.count = 1;
    PosencBias *bias = NULL;
    OK(posenc_bias_terms_new(gpu, &spec, POSENC_F32, &bias));
    PosencTermInputs inputs;
    memset(&inputs, 0, sizeof inputs);
    inputs.numbers = inputs.key_numbers = call.out;
    inputs.numbers_shape = inputs.key_numbers_shape = call.out_shape;
    PosencBiasCall write = POSENC_INIT(PosencBiasCall);
    write.x = empty(N);
    write.shape = logits();
    write.terms = &inputs;
    write.term_count = 1;
    OK(posenc_bias_write(bias, &write));
    float got[N];
    download(got, write.x, sizeof got);
    for (int i = 0; i < N; ++i) {
        double difference = want[i / TOKENS] - want[key_row_of(i)];
        CHECK(near(got[i], difference, 1e-6 * fabs(difference) + 1e-9 + 1e-6 * fabs(want[i / TOKENS])));
    }
    OK(posenc_bias_free(bias));
}

static void check_gates(uint32_t gates) {
    int of_logits = gates == POSENC_GATES_LOGITS;
    float x[ROWS], ends[2][ROWS], got[2 * ROWS];
    double want[ROWS];
    fill(x, ROWS, 30);
    fill(ends[0], ROWS, 31);
    fill(ends[1], ROWS, 32);
    for (int i = 0; i < ROWS && !of_logits; ++i) x[i] = -fabsf(x[i]);
    PosencGateSums *sums = gate_sums_of(gates, POSENC_BF16);
    PosencGateSumsCall call = gate_sums_call(x);
    OK(posenc_gate_sums_write(sums, &call));
    download(got, call.out, sizeof got);
    for (int i = 0; i < ROWS; ++i) {
        want[i] = (of_logits ? -log(1.0 + exp(-(double)x[i])) : x[i]) + (i % TOKENS ? want[i - 1] : 0.0);
        CHECK(near((double)got[2 * i] + got[2 * i + 1], want[i], (of_logits ? 1e-6 : 1e-14) * fabs(want[i])));
    }
    chunks_of_gates(sums, call, got);
    bias_of_gates(call, want);

    PosencGateSumsGradCall grad = POSENC_INIT(PosencGateSumsGradCall);
    grad.gates = call.gates;
    grad.query_grad = BUFFER(ends[0]);
    grad.key_grad = BUFFER(ends[1]);
    grad.grad = empty(ROWS);
    grad.gates_shape = grad.query_grad_shape = grad.key_grad_shape = grad.grad_shape = call.gates_shape;
    OK(posenc_gate_sums_grad(sums, &grad));
    static Sums slopes;
    memset(&slopes, 0, sizeof slopes);
    for (int i = 0; i < ROWS; ++i) {
        double slope = of_logits ? sigmoid(-(double)x[i]) : 1.0;
        for (int j = i; j < (i / TOKENS + 1) * TOKENS; ++j) add(&slopes, i, slope * ((double)ends[0][j] + ends[1][j]));
    }
    check_sums(&slopes, grad.grad, 2e-6);
    grad.key_grad_shape.rows = 3;
    REFUSED(posenc_gate_sums_grad(sums, &grad), POSENC_VALUE,
            "the keys' gradients are [2, 2, 3, 1], they must be [2, 2, 12, 1]");
    OK(posenc_gate_sums_free(sums));
}

static void gates_of_a_forgetting_attention(void) {
    check_gates(POSENC_GATES_LOGS);
    check_gates(POSENC_GATES_LOGITS);
    PosencGateSumsSpec spec = POSENC_INIT(PosencGateSumsSpec);
    PosencGateSums *sums = NULL;
    spec.gates = 2;
    REFUSED(posenc_gate_sums_new(gpu, &spec, POSENC_F32, &sums), POSENC_ARGUMENT, "gates is 2");
    float x[ROWS] = {0};
    sums = gate_sums_of(POSENC_GATES_LOGS, POSENC_F32);
    PosencGateSumsCall call = gate_sums_call(x);
    call.out_shape.entries = 1;
    REFUSED(posenc_gate_sums_write(sums, &call), POSENC_VALUE, "the sums are [2, 2, 12, 1], they must be [2, 2, 12, 2]");
    call.element = POSENC_F16;
    if (!on_cpu) REFUSED(posenc_gate_sums_write(sums, &call), POSENC_VALUE, "f16");
    OK(posenc_gate_sums_free(sums));
}

/* ----------------------------------------------------------------------------------------------------- relative values */

enum { DIM = 6, VALUES = BATCH * TOKENS * HEADS * DIM, LEFT = 3, RIGHT = 2, VECTORS = LEFT + RIGHT + 1 };

static PosencHeads heads(void) {
    return (PosencHeads){BATCH, TOKENS, HEADS, DIM, 0, {TOKENS * HEADS * DIM, HEADS * DIM, DIM}};
}

/* Where the values of pair `i`'s query begin. */
static int value_of(int i) { return ((batch_of(i) * TOKENS + query_of(i)) * HEADS + head_of(i)) * DIM; }

/* The distances of Shaw's table, or of one without a vector beyond its ends. */
static PosencDistances distances(int zero_outside) {
    PosencTerm term;
    OK(posenc_term_shaw(LEFT, RIGHT, &term));
    if (zero_outside) term.distances.outside = POSENC_OUTSIDE_ZERO;
    return term.distances;
}

/* Where pair `i`'s vector begins; -1: it has none. */
static int vector_of(int i, int zero_outside, int table_heads) {
    int n = key_of(i) - query_of(i) + LEFT;
    if (zero_outside && (n < 0 || n >= VECTORS)) return -1;
    return ((table_heads == 1 ? 0 : head_of(i)) * VECTORS + clamp(n, 0, VECTORS - 1)) * DIM;
}

static void check_table_grad(int zero_outside, int table_heads, PosencBuffer p, PosencBuffer dz, const Sums *want) {
    PosencRelativeTableGradSpec spec = POSENC_INIT(PosencRelativeTableGradSpec);
    spec.distances = distances(zero_outside);
    spec.heads = (uint64_t)table_heads;
    spec.dim = DIM;
    PosencLogits max_shape = logits();
    PosencRelativeTableGrad *grad = NULL;
    OK(posenc_relative_table_grad_new(gpu, &spec, &max_shape, POSENC_F32, &grad));
    ON(PosencRelativeTableGrad, posenc_relative_table_grad_on, posenc_relative_table_grad_free, grad);
    uint64_t len = 0;
    OK(posenc_relative_table_grad_len(grad, &len));
    CHECK(len == (uint64_t)(table_heads * VECTORS * DIM));
    PosencRelativeTableGradCall call = POSENC_INIT(PosencRelativeTableGradCall);
    call.probabilities = p;
    call.shape = logits();
    call.dz = dz;
    call.dz_shape = heads();
    call.out = empty(len);
    OK(posenc_relative_table_grad_apply(grad, &call));
    check_sums(want, call.out, 4e-6);
    call.out.len -= 1;
    REFUSED(posenc_relative_table_grad_apply(grad, &call), POSENC_VALUE, "out holds");
    call.dz_shape.dim = DIM - 1;
    REFUSED(posenc_relative_table_grad_apply(grad, &call), POSENC_VALUE, "heads of 5 channels, the table was planned with");
    OK(posenc_relative_table_grad_free(grad));
    spec.dim = 0;
    REFUSED(posenc_relative_table_grad_new(gpu, &spec, &max_shape, POSENC_F32, &grad), POSENC_VALUE, "heads of 0 channels");
}

static void refused_values(const PosencRelativeValues *values, PosencRelativeValuesCall call, PosencRelativeValuesGradCall grad) {
    const PosencRelativeValuesCall good = call;
#define REFUSED_VALUES(status, part) REFUSED(posenc_relative_values_add(values, &call), status, part), call = good
    call.element = 7;
    REFUSED_VALUES(POSENC_ARGUMENT, "element is 7");
    call.table_shape.rows = VECTORS + 1;
    REFUSED_VALUES(POSENC_VALUE, "the table ");
    call.z_shape.tokens = TOKENS - 1;
    REFUSED_VALUES(POSENC_VALUE, "z has 2 sequences, 11 tokens and 2 heads, the probabilities have 2, 12 and 2");
    call.z.data = call.probabilities.data;
    REFUSED_VALUES(POSENC_VALUE, "z");
    grad.add = 2;
    REFUSED(posenc_relative_values_grad(values, &grad), POSENC_ARGUMENT, "add is 2, it must be 0 or 1");
}

static void check_values(int zero_outside, int table_heads) {
    float p[N], z[VALUES], dz[VALUES], vectors[HEADS * VECTORS * DIM];
    fill(p, N, 40);
    fill(z, VALUES, 41);
    fill(dz, VALUES, 42);
    int count = table_heads * VECTORS * DIM;
    fill(vectors, count, 43);
    PosencRelativeValuesSpec spec = POSENC_INIT(PosencRelativeValuesSpec);
    spec.distances = distances(zero_outside);
    PosencRelativeValues *values = NULL;
    OK(posenc_relative_values_new(gpu, &spec, POSENC_F32, &values));
    ON(PosencRelativeValues, posenc_relative_values_on, posenc_relative_values_free, values);
    PosencRelativeValuesCall call = POSENC_INIT(PosencRelativeValuesCall);
    call.probabilities = BUFFER(p);
    call.shape = logits();
    call.table = (PosencBuffer){upload(vectors, sizeof vectors), (uint64_t)count};
    call.table_shape = rows(1, (uint64_t)table_heads, VECTORS, DIM);
    call.z = BUFFER(z);
    call.z_shape = heads();
    OK(posenc_relative_values_add(values, &call));
    PosencRelativeValuesGradCall grad = POSENC_INIT(PosencRelativeValuesGradCall);
    grad.dz = BUFFER(dz);
    grad.dz_shape = call.z_shape;
    grad.table = call.table;
    grad.table_shape = call.table_shape;
    grad.dp = empty(N);
    grad.dp_shape = call.shape;
    OK(posenc_relative_values_grad(values, &grad));

    static Sums want, dp, dtable;
    memset(&want, 0, sizeof want), memset(&dp, 0, sizeof dp), memset(&dtable, 0, sizeof dtable);
    for (int i = 0; i < VALUES; ++i) add(&want, i, z[i]);
    for (int i = 0; i < N; ++i) {
        int first = vector_of(i, zero_outside, table_heads), own = value_of(i);
        for (int c = 0; c < DIM && first >= 0; ++c) {
            add(&want, own + c, (double)p[i] * vectors[first + c]);
            add(&dp, i, (double)dz[own + c] * vectors[first + c]);
            add(&dtable, first + c, (double)p[i] * dz[own + c]);
        }
    }
    check_sums(&want, call.z, 2e-6);
    check_sums(&dp, grad.dp, 2e-6);
    grad.add = 1;
    OK(posenc_relative_values_grad(values, &grad));
    for (int i = 0; i < N; ++i) dp.sum[i] *= 2.0, dp.size[i] *= 2.0;
    check_sums(&dp, grad.dp, 2e-6);
    check_table_grad(zero_outside, table_heads, call.probabilities, grad.dz, &dtable);
    refused_values(values, call, grad);
    OK(posenc_relative_values_free(values));
}

static void relative_values(void) {
    check_values(0, 1);
    check_values(1, HEADS);
    PosencRelativeValuesSpec spec = POSENC_INIT(PosencRelativeValuesSpec);
    PosencRelativeValues *values = NULL;
    REFUSED(posenc_relative_values_new(gpu, &spec, POSENC_F32, &values), POSENC_VALUE, "a term has 0 distances from 0");
}

/* ------------------------------------------------------------------------------------------------------ resized tables */

static double cubic(double x, double a) {
    x = fabs(x);
    if (x <= 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    return x < 2.0 ? a * (((x - 5.0) * x + 8.0) * x - 4.0) : 0.0;
}

/* Where old entry `n` of `from` lies, from the middle of the new table on, and by which ratio its steps grow. */
static double geometric(int n, double ratio) { return (1.0 - pow(ratio, n)) / (1.0 - ratio); }

static double ratio_of(int from, int to) {
    double left = 1.01, right = 1.5, ratio = 1.01;
    while (right - left > 1e-6) {
        ratio = (left + right) / 2.0;
        *(geometric(from / 2, ratio) > to / 2 ? &right : &left) = ratio;
    }
    return ratio;
}

/* The weight of old entry `i` of `from` for new entry `o` of `to`, before the border repeats. */
static double weight(uint32_t resize, int from, int to, int i, int o) {
    double x = ((double)o + 0.5) * from / to - 0.5, ratio = ratio_of(from, to);
    if (resize == POSENC_RESIZE_BILINEAR) return fmax(0.0, 1.0 - fabs(x - i));
    if (resize == POSENC_RESIZE_BICUBIC) return cubic(x - i, -0.75);
    if (resize == POSENC_RESIZE_BICUBIC_ANTIALIAS) {
        double shrink = fmax(1.0, (double)from / to), sum = 0.0;
        for (int n = 0; n < from; ++n) sum += cubic((x - n) / shrink, -0.5);
        return i < 0 || i >= from ? 0.0 : cubic((x - i) / shrink, -0.5) / sum;
    }
    /* Linear between geometric distances: a hat over each old entry. */
    int n = abs(i - from / 2), side = (i > from / 2) - (i < from / 2);
    double at = (o - to / 2) * (side < 0 ? -1.0 : 1.0), own = geometric(n, ratio);
    if (side == 0) at = fabs(at);
    if (at > own) return fmax(0.0, 1.0 - (at - own) / (geometric(n + 1, ratio) - own));
    return n == 0 ? 1.0 : fmax(0.0, 1.0 - (own - at) / (own - geometric(n - 1, ratio)));
}

/* A table of `from` x `from2` entries at a new entry; `head` and the entries lie as models store them. */
static double resized(uint32_t resize, const float *old, const int from[2], const int to[2], int y, int x, int head) {
    double sum = 0.0;
    for (int i = -3; i < from[0] + 3; ++i) {
        for (int j = -3; j < from[1] + 3; ++j) {
            double w = weight(resize, from[0], to[0], i, y) * weight(resize, from[1], to[1], j, x);
            sum += w * old[(clamp(i, 0, from[0] - 1) * from[1] + clamp(j, 0, from[1] - 1)) * HEADS + head];
        }
    }
    return sum;
}

enum { OLD = 5 * 7 + 3, NEW = 9 * 11 + 3 };

static PosencWindowResizeCall resize_call(const void *old, void *new) {
    PosencTerm term;
    OK(posenc_term_beit(3, 4, &term));
    PosencWindowResizeCall call = POSENC_INIT(PosencWindowResizeCall);
    call.window = term.window;
    call.to[0] = 5;
    call.to[1] = 6;
    call.table = old;
    call.table_len = OLD * HEADS;
    call.table_shape = table(HEADS, OLD);
    call.out = new;
    call.out_len = NEW * HEADS;
    return call;
}

static void tables_of_other_windows(void) {
    float old[OLD * HEADS], new[NEW * HEADS];
    const int from[2] = {5, 7}, to[2] = {9, 11};
    fill(old, OLD * HEADS, 50);
    PosencWindowResizeCall call = resize_call(old, new);
    for (call.resize = 0; call.resize < 4; ++call.resize) {
        memset(new, 0, sizeof new);
        OK(posenc_window_resize(&call));
        for (int i = 0; i < 9 * 11 * HEADS; ++i) {
            double want = resized(call.resize, old, from, to, i / HEADS / 11, i / HEADS % 11, i % HEADS);
            CHECK(near(new[i], want, 1e-6));
        }
        CHECK(memcmp(new + 9 * 11 * HEADS, old + 5 * 7 * HEADS, 3 * HEADS * sizeof(float)) == 0);
    }
    /* Numbers of bf16 at their own size are copied. */
    uint16_t halves[OLD * HEADS], copies[NEW * HEADS] = {0};
    for (int i = 0; i < OLD * HEADS; ++i) halves[i] = (uint16_t)(0x3f80 + i);
    call = resize_call(halves, copies);
    call.to[0] = 3;
    call.to[1] = 4;
    call.element = POSENC_BF16;
    OK(posenc_window_resize(&call));
    CHECK(memcmp(halves, copies, sizeof halves) == 0);

    const PosencWindowResizeCall good = resize_call(old, new);
#define REFUSED_RESIZE(status, part) REFUSED(posenc_window_resize(&call), status, part), call = good
    call = good;
    call.resize = 4;
    REFUSED_RESIZE(POSENC_ARGUMENT, "resize is 4");
    call.element = POSENC_F64;
    REFUSED_RESIZE(POSENC_ARGUMENT, "element is 3");
    call.out_len -= 1;
    REFUSED_RESIZE(POSENC_VALUE, "out holds 203 elements, the shape needs 204");
    call.table_len -= 1;
    REFUSED_RESIZE(POSENC_VALUE, "the table holds 75 elements, the shape needs 76");
    call.table = NULL;
    REFUSED_RESIZE(POSENC_ARGUMENT, "table is null");
    call.out = (char *)new + 1;
    REFUSED_RESIZE(POSENC_ARGUMENT, "its elements need multiples of 4");
    call.to[0] = 0;
    REFUSED_RESIZE(POSENC_VALUE, "a window is 0 x 6 tokens");
    call.table_shape.entries -= 1;
    REFUSED_RESIZE(POSENC_VALUE, "that of the window is [1, heads, 1, 38]");
    call.window.prefix_entries = 2;
    REFUSED_RESIZE(POSENC_ARGUMENT, "prefix_entries is 2");
}

static void axes_of_decomposed_positions(void) {
    enum { WIDTH = 4, LENGTH = 7, SIDE = 3 };
    float old[LENGTH * WIDTH], new[6 * SIDE * WIDTH];
    fill(old, LENGTH * WIDTH, 51);
    PosencDecomposedAxisCall call = POSENC_INIT(PosencDecomposedAxisCall);
    call.table = old;
    call.dim = WIDTH;
    call.keys = SIDE;
    call.out = new;
    call.out_len = 6 * SIDE * WIDTH;
    /* A row for every difference; seven rows that become five; six queries for three keys. */
    const int queries[3] = {SIDE, SIDE, 6}, lengths[3] = {2 * SIDE - 1, LENGTH, LENGTH};
    for (int each = 0; each < 3; ++each) {
        int most = 2 * queries[each] - 1, step = queries[each] / SIDE;
        call.table_len = (uint64_t)(lengths[each] * WIDTH);
        call.queries = (uint64_t)queries[each];
        OK(posenc_decomposed_axis(&call));
        for (int i = 0; i < queries[each] * SIDE * WIDTH; ++i) {
            int q = i / WIDTH / SIDE, k = i / WIDTH % SIDE, row = q + (SIDE - 1 - k) * step;
            double want = 0.0;
            for (int n = -1; n <= lengths[each]; ++n) {
                double w = weight(POSENC_RESIZE_BILINEAR, lengths[each], most, n, row);
                want += w * old[clamp(n, 0, lengths[each] - 1) * WIDTH + i % WIDTH];
            }
            CHECK(near(new[i], want, 1e-6));
        }
    }
    call.out_len -= 1;
    REFUSED(posenc_decomposed_axis(&call), POSENC_VALUE, "out holds 71 elements, the shape needs 72");
    call.table_len -= 1;
    call.out_len += 1;
    REFUSED(posenc_decomposed_axis(&call), POSENC_VALUE, "a table of 27 elements in rows of 4");
    call.element = 9;
    REFUSED(posenc_decomposed_axis(&call), POSENC_ARGUMENT, "element is 9");
    REFUSED(posenc_decomposed_axis(NULL), POSENC_ARGUMENT, "call is null");
}

int main(void) {
    open_device();
    gradients_of_terms();
    refused_gradients_of_terms();
    products_of_states();
    networks_of_swin2();
    refused_networks();
    scales_of_heads();
    gates_of_a_forgetting_attention();
    relative_values();
    tables_of_other_windows();
    axes_of_decomposed_positions();
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
