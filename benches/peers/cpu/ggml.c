// ggml on the CPU: those of compare.py's cases that it has operations for. compare.py runs it; beside a build of ggml:
//
//   cc -O2 ggml.c -I GGML/include -L GGML/build/src -lggml -lggml-cpu -lggml-base -Wl,-rpath,GGML/build/src -lm -o ggml-peers
//
// usage: ggml-peers CASE THREADS SECONDS; prints the fastest call in microseconds, or nothing of a case that it lacks.

#include <ggml-cpu.h>
#include <ggml.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct ggml_context *context;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

// Sizes are given from the innermost on.
static struct ggml_tensor *tensor(enum ggml_type type, int64_t a, int64_t b, int64_t c) {
    struct ggml_tensor *made = ggml_new_tensor_3d(context, type, a, b, c);
    for (int64_t i = 0; i < ggml_nelements(made); i++) {
        const float value = (float)(i * 7919 % 1021) / 512 - 1;
        if (type == GGML_TYPE_F32)
            ((float *)made->data)[i] = value;
        else if (type == GGML_TYPE_F16)
            ((ggml_fp16_t *)made->data)[i] = ggml_fp32_to_fp16(value);
        else
            ((int32_t *)made->data)[i] = (int32_t)i;
    }
    return made;
}

static struct ggml_tensor *rope(enum ggml_type type, int tokens, int mode) {
    struct ggml_tensor *x = tensor(type, 128, 32, tokens), *positions = tensor(GGML_TYPE_I32, tokens, 1, 1);
    return ggml_rope_ext_inplace(context, x, positions, NULL, 128, mode, 0, 10000, 1, 0, 1, 0, 0);
}

static struct ggml_tensor *softmax(int queries, int keys) {
    struct ggml_tensor *x = tensor(GGML_TYPE_F32, keys, queries, 16), *mask = tensor(GGML_TYPE_F16, keys, queries, 1);
    for (int query = 0; query < queries; query++)
        for (int key = 0; key < keys; key++) {
            const int distance = key - (query + keys - queries);
            const float value = distance > 0 ? -INFINITY : -(float)abs(distance);
            ((ggml_fp16_t *)mask->data)[query * keys + key] = ggml_fp32_to_fp16(value);
        }
    return ggml_soft_max_ext(context, x, mask, 0.125f, 8.0f);
}

static struct ggml_tensor *of(const char *name) {
    char type[8] = "";
    int a = 0, b = 0, c = 0;
    const char *last = strrchr(name, ' ');
    if (!last || (strcmp(last, " f32") && strcmp(last, " f16")))
        return NULL;
    const enum ggml_type of = strcmp(last, " f16") ? GGML_TYPE_F32 : GGML_TYPE_F16;
    if (sscanf(name, "rope thd Half 32x128 %d %7s", &a, type) == 2)
        return rope(of, a, GGML_ROPE_TYPE_NEOX);
    if (of != GGML_TYPE_F32)
        return NULL;
    if (sscanf(name, "alibi causal softmax 16x%dx%d %7s", &a, &b, type) == 3)
        return softmax(a, b);
    if (sscanf(name, "alibi add 16x%dx%d %7s", &a, &b, type) == 3)
        return ggml_add_inplace(context, tensor(of, b, a, 16), tensor(of, b, a, 16));
    if (sscanf(name, "table add %dx%dx%d %7s", &a, &b, &c, type) == 4)
        return ggml_add_inplace(context, tensor(of, c, b, a), tensor(of, c, b, 1));
    if (sscanf(name, "timestep %dx%d %7s", &a, &b, type) == 3)
        return ggml_timestep_embedding(context, tensor(of, a, 1, 1), b, 10000);
    return NULL;
}

int main(int arguments, char **argument) {
    if (arguments != 4)
        return 2;
    const struct ggml_init_params memory = {1ull << 30, NULL, false};
    context = ggml_init(memory);
    ggml_cpu_init();
    struct ggml_tensor *result = of(argument[1]);
    if (!result)
        return 0;
    struct ggml_cgraph *graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    struct ggml_cplan plan = ggml_graph_plan(graph, atoi(argument[2]), NULL);
    plan.work_data = malloc(plan.work_size + 1);
    ggml_graph_compute(graph, &plan);
    double best = INFINITY;
    for (const double end = now() + atof(argument[3]); now() < end;) {
        const double start = now();
        ggml_graph_compute(graph, &plan);
        best = fmin(best, now() - start);
    }
    printf("%.2f\n", best * 1e6);
}
