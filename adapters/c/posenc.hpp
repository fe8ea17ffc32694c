// posenc for C++11 and later: handles that free themselves, errors that are thrown. Written by adapters/c/tests/cpp.rs; do not
// edit. posenc.h says what each function does: posenc_rope_new is rope::make, posenc_rope_xpos_new rope::make_xpos,
// posenc_rope_rotate the method rope::rotate. Specs and calls are the header's structs.
#ifndef POSENC_HPP
#define POSENC_HPP

#include "posenc.h"

#include <memory>
#include <stdexcept>

namespace posenc {

// What a function refuses; what() is the library's sentence.
class error : public std::runtime_error {
    PosencStatus status_;

public:
    error(PosencStatus status, const char *sentence) : std::runtime_error(sentence), status_(status) {}
    // One of the header's statuses.
    PosencStatus status() const noexcept { return status_; }
};

// Throws unless `status` is POSENC_OK.
inline void check(PosencStatus status) {
    if (status != POSENC_OK) throw error(status, posenc_last_error());
}

// Owns what `Free` frees; it can be moved and not copied.
template <class T, PosencStatus (*Free)(T *)> class handle {
    struct deleter {
        void operator()(T *raw) const noexcept { Free(raw); }
    };
    std::unique_ptr<T, deleter> raw_;

public:
    // Owns nothing, or a handle of posenc.h.
    explicit handle(T *raw = nullptr) noexcept : raw_(raw) {}
    // The handle of posenc.h, still owned.
    T *get() const noexcept { return raw_.get(); }
    // The handle of posenc.h, which is the caller's to free.
    T *release() noexcept { return raw_.release(); }
    explicit operator bool() const noexcept { return static_cast<bool>(raw_); }
};

class bias;
class distance_grad;
class error_flag;
class fire_grad;
class fixed;
class gate_sums;
class gpu;
class grid;
class learned;
class learned_grad;
class merge;
class model;
class prologue;
class relative_products;
class relative_table_grad;
class relative_values;
class resample;
class rope;
class rope_grad;
class sinusoid;
class softmax;
class swin2;
class term_grad;
class timestep;

class bias : public handle<PosencBias, posenc_bias_free> {
public:
    using handle::handle;
    static bias make_alibi(const gpu &gpu, const PosencAlibiSpec &spec, uint32_t element);
    static bias make_key_only(const gpu &gpu, const PosencKeyOnlySpec &spec, uint32_t element);
    static bias make_slopes(const gpu &gpu, const PosencSlopesSpec &spec, uint32_t element);
    static bias make_t5(const gpu &gpu, const PosencT5Spec &spec, uint32_t element);
    static bias make_row(const gpu &gpu, const PosencRowSpec &spec, uint32_t element);
    static bias make_kerple(const gpu &gpu, const PosencKerpleSpec &spec, uint32_t element);
    static bias make_sandwich(const gpu &gpu, const PosencSandwichSpec &spec, uint32_t element);
    static bias make_fire(const gpu &gpu, const PosencFireSpec &spec, uint32_t element);
    static bias make_terms(const gpu &gpu, const PosencTermsSpec &spec, uint32_t element);
    bias on(const gpu &gpu) const;
    void write(const PosencBiasCall &call) const;
    void add(const PosencBiasCall &call) const;
    void set_table(const PosencSetTableCall &call);
    PosencBuffer numbers(uint32_t which);
};

class distance_grad : public handle<PosencDistanceGrad, posenc_distance_grad_free> {
public:
    using handle::handle;
    static distance_grad make_t5(const gpu &gpu, const PosencT5Spec &spec, const PosencLogits &max_shape, uint32_t element);
    static distance_grad make_slopes(const gpu &gpu, const PosencSlopesGradSpec &spec, const PosencLogits &max_shape, uint32_t element);
    static distance_grad make_row(const gpu &gpu, const PosencRowSpec &spec, const PosencLogits &max_shape, uint32_t element);
    static distance_grad make_kerple(const gpu &gpu, const PosencKerpleSpec &spec, const PosencLogits &max_shape, uint32_t element);
    distance_grad on(const gpu &gpu) const;
    uint64_t len() const;
    void apply(const PosencDistanceGradCall &call) const;
};

class error_flag : public handle<PosencErrorFlag, posenc_error_flag_free> {
public:
    using handle::handle;
    static error_flag make(const gpu &gpu);
    void check();
};

class fire_grad : public handle<PosencFireGrad, posenc_fire_grad_free> {
public:
    using handle::handle;
    static fire_grad make(const gpu &gpu, const PosencFireSpec &spec, const PosencLogits &max_shape, uint32_t element);
    fire_grad on(const gpu &gpu) const;
    uint64_t len() const;
    void apply(const PosencDistanceGradCall &call) const;
};

class fixed : public handle<PosencFixed, posenc_fixed_free> {
public:
    using handle::handle;
    static fixed make(const gpu &gpu);
    fixed on(const gpu &gpu) const;
    void write(const PosencFixedCall &call) const;
};

class gate_sums : public handle<PosencGateSums, posenc_gate_sums_free> {
public:
    using handle::handle;
    static gate_sums make(const gpu &gpu, const PosencGateSumsSpec &spec, uint32_t element);
    gate_sums on(const gpu &gpu) const;
    void write(const PosencGateSumsCall &call) const;
    void grad(const PosencGateSumsGradCall &call) const;
};

class gpu : public handle<PosencGpu, posenc_gpu_free> {
public:
    using handle::handle;
    static gpu make(uint32_t ordinal, PosencStream stream, uint32_t overlap);
    static gpu make_cpu();
};

class grid : public handle<PosencGrid, posenc_grid_free> {
public:
    using handle::handle;
    static grid make(const gpu &gpu, const PosencGridSpec &spec, uint32_t element);
    grid on(const gpu &gpu) const;
    void write(const PosencGridCall &call) const;
    void add(const PosencGridCall &call) const;
    void write_masked(const PosencGridMaskedCall &call) const;
};

class learned : public handle<PosencLearned, posenc_learned_free> {
public:
    using handle::handle;
    static learned make(const gpu &gpu, const PosencLearnedSpec &spec, uint32_t element);
    learned on(const gpu &gpu) const;
    void gather(const PosencLearnedCall &call) const;
    void rows(const PosencRowsCall &call) const;
};

class learned_grad : public handle<PosencLearnedGrad, posenc_learned_grad_free> {
public:
    using handle::handle;
    static learned_grad make(const gpu &gpu, const PosencLearnedSpec &spec, const PosencTokens &max_shape, uint32_t element);
    learned_grad on(const gpu &gpu) const;
    void norm(const PosencNormGradCall &call) const;
    void counted(const PosencTableGradCall &call) const;
    void order(const PosencOrderCall &call) const;
    void table(const PosencTableGradCall &call) const;
};

class merge : public handle<PosencMerge, posenc_merge_free> {
public:
    using handle::handle;
    static merge make(const gpu &gpu, const PosencMergeSpec &spec, uint32_t element);
    merge on(const gpu &gpu) const;
    void states(const PosencMergeCall &call) const;
    void grad(const PosencMergeGradCall &call) const;
};

class model : public handle<PosencModel, posenc_model_free> {
public:
    using handle::handle;
    static model from_hf(const char *config);
    static model from_hf_as(const char *config, const char *model_type);
    static model from_mistral(const char *params);
    static model from_gguf(const char *path);
    static model open(const char *path);
    const char *name() const;
    const char *describe() const;
    uint64_t context() const;
    uint64_t layers() const;
    PosencLayer layer(uint64_t layer) const;
    PosencAdded added(uint64_t layer) const;
    PosencPatchGrid grid() const;
    PosencLayerPrologue prologue(uint64_t layer) const;
};

class prologue : public handle<PosencPrologue, posenc_prologue_free> {
public:
    using handle::handle;
    static prologue make(const gpu &gpu, const PosencPrologueSpec &spec, uint32_t element);
    static prologue of_model(const gpu &gpu, const model &model, uint64_t layer, uint64_t length, uint32_t element);
    prologue on(const gpu &gpu) const;
    void apply(const PosencPrologueCall &call) const;
};

class relative_products : public handle<PosencRelativeProducts, posenc_relative_products_free> {
public:
    using handle::handle;
    static relative_products make(const gpu &gpu, const PosencRelativeProductsSpec &spec, uint32_t element);
    relative_products on(const gpu &gpu) const;
    void add(const PosencRelativeProductsCall &call) const;
    void write(const PosencRelativeProductsCall &call) const;
};

class relative_table_grad : public handle<PosencRelativeTableGrad, posenc_relative_table_grad_free> {
public:
    using handle::handle;
    static relative_table_grad make(const gpu &gpu, const PosencRelativeTableGradSpec &spec, const PosencLogits &max_shape, uint32_t element);
    relative_table_grad on(const gpu &gpu) const;
    uint64_t len() const;
    void apply(const PosencRelativeTableGradCall &call) const;
};

class relative_values : public handle<PosencRelativeValues, posenc_relative_values_free> {
public:
    using handle::handle;
    static relative_values make(const gpu &gpu, const PosencRelativeValuesSpec &spec, uint32_t element);
    relative_values on(const gpu &gpu) const;
    void add(const PosencRelativeValuesCall &call) const;
    void grad(const PosencRelativeValuesGradCall &call) const;
};

class resample : public handle<PosencResample, posenc_resample_free> {
public:
    using handle::handle;
    static resample make(const gpu &gpu, const PosencResampleSpec &spec, uint32_t element);
    resample on(const gpu &gpu) const;
    void write(const PosencResampleCall &call) const;
    void grad(const PosencResampleCall &call) const;
};

class rope : public handle<PosencRope, posenc_rope_free> {
public:
    using handle::handle;
    static rope make(const gpu &gpu, const PosencRopeSpec &spec, uint32_t element);
    static rope make_xpos(const gpu &gpu, const PosencXPosSpec &spec, uint32_t element);
    rope on(const gpu &gpu) const;
    void rotate(const PosencRopeCall &call) const;
    void set_frequencies(const PosencSetFrequenciesCall &call);
    static rope of_model(const gpu &gpu, const model &model, uint64_t layer, uint64_t length, uint32_t element);
    static rope from_hf(const gpu &gpu, const char *config, uint64_t layer, uint64_t length, uint32_t element);
};

class rope_grad : public handle<PosencRopeGrad, posenc_rope_grad_free> {
public:
    using handle::handle;
    static rope_grad make(const gpu &gpu, const PosencRopeSpec &spec, uint32_t element);
    rope_grad on(const gpu &gpu) const;
    void frequencies(const PosencFrequencyGradCall &call) const;
    void positions(const PosencPositionGradCall &call) const;
};

class sinusoid : public handle<PosencSinusoid, posenc_sinusoid_free> {
public:
    using handle::handle;
    static sinusoid make(const gpu &gpu, const PosencSinusoidSpec &spec, uint32_t element);
    sinusoid on(const gpu &gpu) const;
    void write(const PosencSinusoidCall &call) const;
    void add(const PosencSinusoidCall &call) const;
};

class softmax : public handle<PosencSoftmax, posenc_softmax_free> {
public:
    using handle::handle;
    static softmax make(const gpu &gpu, const PosencSoftmaxSpec &spec, uint32_t element);
    softmax on(const gpu &gpu) const;
    void apply(const PosencSoftmaxCall &call) const;
    void grad(const PosencSoftmaxGradCall &call) const;
    void sink_grad(const PosencSinkGradCall &call) const;
};

class swin2 : public handle<PosencSwin2, posenc_swin2_free> {
public:
    using handle::handle;
    static swin2 make(const gpu &gpu, const PosencSwin2Spec &spec, uint32_t element);
    swin2 on(const gpu &gpu) const;
    void write(const PosencSwin2Call &call) const;
    void grad(const PosencSwin2GradCall &call) const;
};

class term_grad : public handle<PosencTermGrad, posenc_term_grad_free> {
public:
    using handle::handle;
    static term_grad make(const gpu &gpu, const PosencTermGradSpec &spec, const PosencLogits &max_shape, uint32_t element);
    term_grad on(const gpu &gpu) const;
    void apply(const PosencTermGradCall &call) const;
    void apply_keys(const PosencTermGradCall &call) const;
};

class timestep : public handle<PosencTimestep, posenc_timestep_free> {
public:
    using handle::handle;
    static timestep make(const gpu &gpu, const PosencSinusoidSpec &spec, uint32_t element);
    timestep on(const gpu &gpu) const;
    void write(const PosencTimestepCall &call) const;
};

inline gpu gpu::make(uint32_t ordinal, PosencStream stream, uint32_t overlap) {
    PosencGpu *raw = nullptr;
    posenc::check(posenc_gpu_new(ordinal, stream, overlap, &raw));
    return gpu(raw);
}

inline gpu gpu::make_cpu() {
    PosencGpu *raw = nullptr;
    posenc::check(posenc_cpu_new(&raw));
    return gpu(raw);
}

inline const char *last_error() {
    return posenc_last_error();
}

inline uint32_t version() {
    return posenc_version();
}

inline rope rope::make(const gpu &gpu, const PosencRopeSpec &spec, uint32_t element) {
    PosencRope *raw = nullptr;
    posenc::check(posenc_rope_new(gpu.get(), &spec, element, &raw));
    return rope(raw);
}

inline rope rope::make_xpos(const gpu &gpu, const PosencXPosSpec &spec, uint32_t element) {
    PosencRope *raw = nullptr;
    posenc::check(posenc_rope_xpos_new(gpu.get(), &spec, element, &raw));
    return rope(raw);
}

inline rope rope::on(const gpu &gpu) const {
    PosencRope *raw = nullptr;
    posenc::check(posenc_rope_on(get(), gpu.get(), &raw));
    return rope(raw);
}

inline void rope::rotate(const PosencRopeCall &call) const {
    posenc::check(posenc_rope_rotate(get(), &call));
}

inline void rope::set_frequencies(const PosencSetFrequenciesCall &call) {
    posenc::check(posenc_rope_set_frequencies(get(), &call));
}

inline rope_grad rope_grad::make(const gpu &gpu, const PosencRopeSpec &spec, uint32_t element) {
    PosencRopeGrad *raw = nullptr;
    posenc::check(posenc_rope_grad_new(gpu.get(), &spec, element, &raw));
    return rope_grad(raw);
}

inline rope_grad rope_grad::on(const gpu &gpu) const {
    PosencRopeGrad *raw = nullptr;
    posenc::check(posenc_rope_grad_on(get(), gpu.get(), &raw));
    return rope_grad(raw);
}

inline void rope_grad::frequencies(const PosencFrequencyGradCall &call) const {
    posenc::check(posenc_rope_grad_frequencies(get(), &call));
}

inline void rope_grad::positions(const PosencPositionGradCall &call) const {
    posenc::check(posenc_rope_grad_positions(get(), &call));
}

inline fixed fixed::make(const gpu &gpu) {
    PosencFixed *raw = nullptr;
    posenc::check(posenc_fixed_new(gpu.get(), &raw));
    return fixed(raw);
}

inline fixed fixed::on(const gpu &gpu) const {
    PosencFixed *raw = nullptr;
    posenc::check(posenc_fixed_on(get(), gpu.get(), &raw));
    return fixed(raw);
}

inline void fixed::write(const PosencFixedCall &call) const {
    posenc::check(posenc_fixed_write(get(), &call));
}

inline sinusoid sinusoid::make(const gpu &gpu, const PosencSinusoidSpec &spec, uint32_t element) {
    PosencSinusoid *raw = nullptr;
    posenc::check(posenc_sinusoid_new(gpu.get(), &spec, element, &raw));
    return sinusoid(raw);
}

inline sinusoid sinusoid::on(const gpu &gpu) const {
    PosencSinusoid *raw = nullptr;
    posenc::check(posenc_sinusoid_on(get(), gpu.get(), &raw));
    return sinusoid(raw);
}

inline void sinusoid::write(const PosencSinusoidCall &call) const {
    posenc::check(posenc_sinusoid_write(get(), &call));
}

inline void sinusoid::add(const PosencSinusoidCall &call) const {
    posenc::check(posenc_sinusoid_add(get(), &call));
}

inline timestep timestep::make(const gpu &gpu, const PosencSinusoidSpec &spec, uint32_t element) {
    PosencTimestep *raw = nullptr;
    posenc::check(posenc_timestep_new(gpu.get(), &spec, element, &raw));
    return timestep(raw);
}

inline timestep timestep::on(const gpu &gpu) const {
    PosencTimestep *raw = nullptr;
    posenc::check(posenc_timestep_on(get(), gpu.get(), &raw));
    return timestep(raw);
}

inline void timestep::write(const PosencTimestepCall &call) const {
    posenc::check(posenc_timestep_write(get(), &call));
}

inline grid grid::make(const gpu &gpu, const PosencGridSpec &spec, uint32_t element) {
    PosencGrid *raw = nullptr;
    posenc::check(posenc_grid_new(gpu.get(), &spec, element, &raw));
    return grid(raw);
}

inline grid grid::on(const gpu &gpu) const {
    PosencGrid *raw = nullptr;
    posenc::check(posenc_grid_on(get(), gpu.get(), &raw));
    return grid(raw);
}

inline void grid::write(const PosencGridCall &call) const {
    posenc::check(posenc_grid_write(get(), &call));
}

inline void grid::add(const PosencGridCall &call) const {
    posenc::check(posenc_grid_add(get(), &call));
}

inline void grid::write_masked(const PosencGridMaskedCall &call) const {
    posenc::check(posenc_grid_write_masked(get(), &call));
}

inline error_flag error_flag::make(const gpu &gpu) {
    PosencErrorFlag *raw = nullptr;
    posenc::check(posenc_error_flag_new(gpu.get(), &raw));
    return error_flag(raw);
}

inline void error_flag::check() {
    posenc::check(posenc_error_flag_check(get()));
}

inline learned learned::make(const gpu &gpu, const PosencLearnedSpec &spec, uint32_t element) {
    PosencLearned *raw = nullptr;
    posenc::check(posenc_learned_new(gpu.get(), &spec, element, &raw));
    return learned(raw);
}

inline learned learned::on(const gpu &gpu) const {
    PosencLearned *raw = nullptr;
    posenc::check(posenc_learned_on(get(), gpu.get(), &raw));
    return learned(raw);
}

inline void learned::gather(const PosencLearnedCall &call) const {
    posenc::check(posenc_learned_gather(get(), &call));
}

inline void learned::rows(const PosencRowsCall &call) const {
    posenc::check(posenc_learned_rows(get(), &call));
}

inline learned_grad learned_grad::make(const gpu &gpu, const PosencLearnedSpec &spec, const PosencTokens &max_shape, uint32_t element) {
    PosencLearnedGrad *raw = nullptr;
    posenc::check(posenc_learned_grad_new(gpu.get(), &spec, &max_shape, element, &raw));
    return learned_grad(raw);
}

inline learned_grad learned_grad::on(const gpu &gpu) const {
    PosencLearnedGrad *raw = nullptr;
    posenc::check(posenc_learned_grad_on(get(), gpu.get(), &raw));
    return learned_grad(raw);
}

inline void learned_grad::norm(const PosencNormGradCall &call) const {
    posenc::check(posenc_learned_grad_norm(get(), &call));
}

inline void learned_grad::counted(const PosencTableGradCall &call) const {
    posenc::check(posenc_learned_grad_counted(get(), &call));
}

inline void learned_grad::order(const PosencOrderCall &call) const {
    posenc::check(posenc_learned_grad_order(get(), &call));
}

inline void learned_grad::table(const PosencTableGradCall &call) const {
    posenc::check(posenc_learned_grad_table(get(), &call));
}

inline resample resample::make(const gpu &gpu, const PosencResampleSpec &spec, uint32_t element) {
    PosencResample *raw = nullptr;
    posenc::check(posenc_resample_new(gpu.get(), &spec, element, &raw));
    return resample(raw);
}

inline resample resample::on(const gpu &gpu) const {
    PosencResample *raw = nullptr;
    posenc::check(posenc_resample_on(get(), gpu.get(), &raw));
    return resample(raw);
}

inline void resample::write(const PosencResampleCall &call) const {
    posenc::check(posenc_resample_write(get(), &call));
}

inline void resample::grad(const PosencResampleCall &call) const {
    posenc::check(posenc_resample_grad(get(), &call));
}

inline PosencTerm term_swin(uint64_t height, uint64_t width) {
    PosencTerm value = {};
    posenc::check(posenc_term_swin(height, width, &value));
    return value;
}

inline PosencTerm term_beit(uint64_t height, uint64_t width) {
    PosencTerm value = {};
    posenc::check(posenc_term_beit(height, width, &value));
    return value;
}

inline PosencTerm term_maxvit(uint64_t height, uint64_t width) {
    PosencTerm value = {};
    posenc::check(posenc_term_maxvit(height, width, &value));
    return value;
}

inline PosencTerm term_levit(uint64_t height, uint64_t width, uint64_t stride) {
    PosencTerm value = {};
    posenc::check(posenc_term_levit(height, width, stride, &value));
    return value;
}

inline PosencTerm term_decomposed(uint64_t height, uint64_t width, uint32_t axes) {
    PosencTerm value = {};
    posenc::check(posenc_term_decomposed(height, width, axes, &value));
    return value;
}

inline PosencTerm term_shaw(uint64_t left, uint64_t right) {
    PosencTerm value = {};
    posenc::check(posenc_term_shaw(left, right, &value));
    return value;
}

inline PosencTerm term_vits(uint64_t window) {
    PosencTerm value = {};
    posenc::check(posenc_term_vits(window, &value));
    return value;
}

inline PosencTerm term_speecht5(uint64_t max_length) {
    PosencTerm value = {};
    posenc::check(posenc_term_speecht5(max_length, &value));
    return value;
}

inline PosencTerm term_gemma_audio(uint64_t past, uint64_t right) {
    PosencTerm value = {};
    posenc::check(posenc_term_gemma_audio(past, right, &value));
    return value;
}

inline PosencTerm term_bert(uint64_t max_positions) {
    PosencTerm value = {};
    posenc::check(posenc_term_bert(max_positions, &value));
    return value;
}

inline PosencTerm term_transformer_xl(uint64_t keys) {
    PosencTerm value = {};
    posenc::check(posenc_term_transformer_xl(keys, &value));
    return value;
}

inline PosencTerm term_xlnet(uint64_t queries, uint64_t keys) {
    PosencTerm value = {};
    posenc::check(posenc_term_xlnet(queries, keys, &value));
    return value;
}

inline PosencTerm term_conformer(uint64_t tokens) {
    PosencTerm value = {};
    posenc::check(posenc_term_conformer(tokens, &value));
    return value;
}

inline PosencTerm term_inkling(uint64_t extent) {
    PosencTerm value = {};
    posenc::check(posenc_term_inkling(extent, &value));
    return value;
}

inline PosencTerm term_deberta_v1(uint64_t span) {
    PosencTerm value = {};
    posenc::check(posenc_term_deberta_v1(span, &value));
    return value;
}

inline PosencTerm term_deberta(uint64_t buckets, uint64_t max_positions) {
    PosencTerm value = {};
    posenc::check(posenc_term_deberta(buckets, max_positions, &value));
    return value;
}

inline uint64_t term_entries(const PosencTerm &term) {
    uint64_t value = {};
    posenc::check(posenc_term_entries(&term, &value));
    return value;
}

inline void window_resize(const PosencWindowResizeCall &call) {
    posenc::check(posenc_window_resize(&call));
}

inline void decomposed_axis(const PosencDecomposedAxisCall &call) {
    posenc::check(posenc_decomposed_axis(&call));
}

inline bias bias::make_alibi(const gpu &gpu, const PosencAlibiSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_alibi_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_key_only(const gpu &gpu, const PosencKeyOnlySpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_key_only_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_slopes(const gpu &gpu, const PosencSlopesSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_slopes_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_t5(const gpu &gpu, const PosencT5Spec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_t5_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_row(const gpu &gpu, const PosencRowSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_row_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_kerple(const gpu &gpu, const PosencKerpleSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_kerple_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_sandwich(const gpu &gpu, const PosencSandwichSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_sandwich_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_fire(const gpu &gpu, const PosencFireSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_fire_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::make_terms(const gpu &gpu, const PosencTermsSpec &spec, uint32_t element) {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_terms_new(gpu.get(), &spec, element, &raw));
    return bias(raw);
}

inline bias bias::on(const gpu &gpu) const {
    PosencBias *raw = nullptr;
    posenc::check(posenc_bias_on(get(), gpu.get(), &raw));
    return bias(raw);
}

inline void bias::write(const PosencBiasCall &call) const {
    posenc::check(posenc_bias_write(get(), &call));
}

inline void bias::add(const PosencBiasCall &call) const {
    posenc::check(posenc_bias_add(get(), &call));
}

inline void bias::set_table(const PosencSetTableCall &call) {
    posenc::check(posenc_bias_set_table(get(), &call));
}

inline PosencBuffer bias::numbers(uint32_t which) {
    PosencBuffer value = {};
    posenc::check(posenc_bias_numbers(get(), which, &value));
    return value;
}

inline distance_grad distance_grad::make_t5(const gpu &gpu, const PosencT5Spec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencDistanceGrad *raw = nullptr;
    posenc::check(posenc_distance_grad_t5_new(gpu.get(), &spec, &max_shape, element, &raw));
    return distance_grad(raw);
}

inline distance_grad distance_grad::make_slopes(const gpu &gpu, const PosencSlopesGradSpec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencDistanceGrad *raw = nullptr;
    posenc::check(posenc_distance_grad_slopes_new(gpu.get(), &spec, &max_shape, element, &raw));
    return distance_grad(raw);
}

inline distance_grad distance_grad::make_row(const gpu &gpu, const PosencRowSpec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencDistanceGrad *raw = nullptr;
    posenc::check(posenc_distance_grad_row_new(gpu.get(), &spec, &max_shape, element, &raw));
    return distance_grad(raw);
}

inline distance_grad distance_grad::make_kerple(const gpu &gpu, const PosencKerpleSpec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencDistanceGrad *raw = nullptr;
    posenc::check(posenc_distance_grad_kerple_new(gpu.get(), &spec, &max_shape, element, &raw));
    return distance_grad(raw);
}

inline distance_grad distance_grad::on(const gpu &gpu) const {
    PosencDistanceGrad *raw = nullptr;
    posenc::check(posenc_distance_grad_on(get(), gpu.get(), &raw));
    return distance_grad(raw);
}

inline uint64_t distance_grad::len() const {
    uint64_t value = {};
    posenc::check(posenc_distance_grad_len(get(), &value));
    return value;
}

inline void distance_grad::apply(const PosencDistanceGradCall &call) const {
    posenc::check(posenc_distance_grad_apply(get(), &call));
}

inline fire_grad fire_grad::make(const gpu &gpu, const PosencFireSpec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencFireGrad *raw = nullptr;
    posenc::check(posenc_fire_grad_new(gpu.get(), &spec, &max_shape, element, &raw));
    return fire_grad(raw);
}

inline fire_grad fire_grad::on(const gpu &gpu) const {
    PosencFireGrad *raw = nullptr;
    posenc::check(posenc_fire_grad_on(get(), gpu.get(), &raw));
    return fire_grad(raw);
}

inline uint64_t fire_grad::len() const {
    uint64_t value = {};
    posenc::check(posenc_fire_grad_len(get(), &value));
    return value;
}

inline void fire_grad::apply(const PosencDistanceGradCall &call) const {
    posenc::check(posenc_fire_grad_apply(get(), &call));
}

inline term_grad term_grad::make(const gpu &gpu, const PosencTermGradSpec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencTermGrad *raw = nullptr;
    posenc::check(posenc_term_grad_new(gpu.get(), &spec, &max_shape, element, &raw));
    return term_grad(raw);
}

inline term_grad term_grad::on(const gpu &gpu) const {
    PosencTermGrad *raw = nullptr;
    posenc::check(posenc_term_grad_on(get(), gpu.get(), &raw));
    return term_grad(raw);
}

inline void term_grad::apply(const PosencTermGradCall &call) const {
    posenc::check(posenc_term_grad_apply(get(), &call));
}

inline void term_grad::apply_keys(const PosencTermGradCall &call) const {
    posenc::check(posenc_term_grad_apply_keys(get(), &call));
}

inline relative_products relative_products::make(const gpu &gpu, const PosencRelativeProductsSpec &spec, uint32_t element) {
    PosencRelativeProducts *raw = nullptr;
    posenc::check(posenc_relative_products_new(gpu.get(), &spec, element, &raw));
    return relative_products(raw);
}

inline relative_products relative_products::on(const gpu &gpu) const {
    PosencRelativeProducts *raw = nullptr;
    posenc::check(posenc_relative_products_on(get(), gpu.get(), &raw));
    return relative_products(raw);
}

inline void relative_products::add(const PosencRelativeProductsCall &call) const {
    posenc::check(posenc_relative_products_add(get(), &call));
}

inline void relative_products::write(const PosencRelativeProductsCall &call) const {
    posenc::check(posenc_relative_products_write(get(), &call));
}

inline swin2 swin2::make(const gpu &gpu, const PosencSwin2Spec &spec, uint32_t element) {
    PosencSwin2 *raw = nullptr;
    posenc::check(posenc_swin2_new(gpu.get(), &spec, element, &raw));
    return swin2(raw);
}

inline swin2 swin2::on(const gpu &gpu) const {
    PosencSwin2 *raw = nullptr;
    posenc::check(posenc_swin2_on(get(), gpu.get(), &raw));
    return swin2(raw);
}

inline void swin2::write(const PosencSwin2Call &call) const {
    posenc::check(posenc_swin2_write(get(), &call));
}

inline void swin2::grad(const PosencSwin2GradCall &call) const {
    posenc::check(posenc_swin2_grad(get(), &call));
}

inline float swin2_logit_scale(float logit_scale) {
    return posenc_swin2_logit_scale(logit_scale);
}

inline gate_sums gate_sums::make(const gpu &gpu, const PosencGateSumsSpec &spec, uint32_t element) {
    PosencGateSums *raw = nullptr;
    posenc::check(posenc_gate_sums_new(gpu.get(), &spec, element, &raw));
    return gate_sums(raw);
}

inline gate_sums gate_sums::on(const gpu &gpu) const {
    PosencGateSums *raw = nullptr;
    posenc::check(posenc_gate_sums_on(get(), gpu.get(), &raw));
    return gate_sums(raw);
}

inline void gate_sums::write(const PosencGateSumsCall &call) const {
    posenc::check(posenc_gate_sums_write(get(), &call));
}

inline void gate_sums::grad(const PosencGateSumsGradCall &call) const {
    posenc::check(posenc_gate_sums_grad(get(), &call));
}

inline softmax softmax::make(const gpu &gpu, const PosencSoftmaxSpec &spec, uint32_t element) {
    PosencSoftmax *raw = nullptr;
    posenc::check(posenc_softmax_new(gpu.get(), &spec, element, &raw));
    return softmax(raw);
}

inline softmax softmax::on(const gpu &gpu) const {
    PosencSoftmax *raw = nullptr;
    posenc::check(posenc_softmax_on(get(), gpu.get(), &raw));
    return softmax(raw);
}

inline void softmax::apply(const PosencSoftmaxCall &call) const {
    posenc::check(posenc_softmax_apply(get(), &call));
}

inline void softmax::grad(const PosencSoftmaxGradCall &call) const {
    posenc::check(posenc_softmax_grad(get(), &call));
}

inline void softmax::sink_grad(const PosencSinkGradCall &call) const {
    posenc::check(posenc_softmax_sink_grad(get(), &call));
}

inline relative_values relative_values::make(const gpu &gpu, const PosencRelativeValuesSpec &spec, uint32_t element) {
    PosencRelativeValues *raw = nullptr;
    posenc::check(posenc_relative_values_new(gpu.get(), &spec, element, &raw));
    return relative_values(raw);
}

inline relative_values relative_values::on(const gpu &gpu) const {
    PosencRelativeValues *raw = nullptr;
    posenc::check(posenc_relative_values_on(get(), gpu.get(), &raw));
    return relative_values(raw);
}

inline void relative_values::add(const PosencRelativeValuesCall &call) const {
    posenc::check(posenc_relative_values_add(get(), &call));
}

inline void relative_values::grad(const PosencRelativeValuesGradCall &call) const {
    posenc::check(posenc_relative_values_grad(get(), &call));
}

inline relative_table_grad relative_table_grad::make(const gpu &gpu, const PosencRelativeTableGradSpec &spec, const PosencLogits &max_shape, uint32_t element) {
    PosencRelativeTableGrad *raw = nullptr;
    posenc::check(posenc_relative_table_grad_new(gpu.get(), &spec, &max_shape, element, &raw));
    return relative_table_grad(raw);
}

inline relative_table_grad relative_table_grad::on(const gpu &gpu) const {
    PosencRelativeTableGrad *raw = nullptr;
    posenc::check(posenc_relative_table_grad_on(get(), gpu.get(), &raw));
    return relative_table_grad(raw);
}

inline uint64_t relative_table_grad::len() const {
    uint64_t value = {};
    posenc::check(posenc_relative_table_grad_len(get(), &value));
    return value;
}

inline void relative_table_grad::apply(const PosencRelativeTableGradCall &call) const {
    posenc::check(posenc_relative_table_grad_apply(get(), &call));
}

inline merge merge::make(const gpu &gpu, const PosencMergeSpec &spec, uint32_t element) {
    PosencMerge *raw = nullptr;
    posenc::check(posenc_merge_new(gpu.get(), &spec, element, &raw));
    return merge(raw);
}

inline merge merge::on(const gpu &gpu) const {
    PosencMerge *raw = nullptr;
    posenc::check(posenc_merge_on(get(), gpu.get(), &raw));
    return merge(raw);
}

inline void merge::states(const PosencMergeCall &call) const {
    posenc::check(posenc_merge_states(get(), &call));
}

inline void merge::grad(const PosencMergeGradCall &call) const {
    posenc::check(posenc_merge_grad(get(), &call));
}

inline model model::from_hf(const char *config) {
    PosencModel *raw = nullptr;
    posenc::check(posenc_model_from_hf(config, &raw));
    return model(raw);
}

inline model model::from_hf_as(const char *config, const char *model_type) {
    PosencModel *raw = nullptr;
    posenc::check(posenc_model_from_hf_as(config, model_type, &raw));
    return model(raw);
}

inline model model::from_mistral(const char *params) {
    PosencModel *raw = nullptr;
    posenc::check(posenc_model_from_mistral(params, &raw));
    return model(raw);
}

inline model model::from_gguf(const char *path) {
    PosencModel *raw = nullptr;
    posenc::check(posenc_model_from_gguf(path, &raw));
    return model(raw);
}

inline model model::open(const char *path) {
    PosencModel *raw = nullptr;
    posenc::check(posenc_model_open(path, &raw));
    return model(raw);
}

inline const char *model::name() const {
    const char *value = {};
    posenc::check(posenc_model_name(get(), &value));
    return value;
}

inline const char *model::describe() const {
    const char *value = {};
    posenc::check(posenc_model_describe(get(), &value));
    return value;
}

inline uint64_t model::context() const {
    uint64_t value = {};
    posenc::check(posenc_model_context(get(), &value));
    return value;
}

inline uint64_t model::layers() const {
    uint64_t value = {};
    posenc::check(posenc_model_layers(get(), &value));
    return value;
}

inline PosencLayer model::layer(uint64_t layer) const {
    PosencLayer value = {};
    posenc::check(posenc_model_layer(get(), layer, &value));
    return value;
}

inline PosencAdded model::added(uint64_t layer) const {
    PosencAdded value = {};
    posenc::check(posenc_model_added(get(), layer, &value));
    return value;
}

inline PosencPatchGrid model::grid() const {
    PosencPatchGrid value = {};
    posenc::check(posenc_model_grid(get(), &value));
    return value;
}

inline uint64_t patch_tokens(const PosencPatchGrid &grid, const uint64_t *grids, uint64_t count) {
    uint64_t value = {};
    posenc::check(posenc_patch_tokens(&grid, grids, count, &value));
    return value;
}

inline uint64_t patch_positions(const PosencPatchGrid &grid, const uint64_t *grids, uint64_t count, uint64_t stride, int64_t *ids) {
    uint64_t value = {};
    posenc::check(posenc_patch_positions(&grid, grids, count, stride, ids, &value));
    return value;
}

inline uint64_t timed_windows(uint64_t windows, uint64_t frames, uint64_t stride, int64_t *ids) {
    uint64_t value = {};
    posenc::check(posenc_timed_windows(windows, frames, stride, ids, &value));
    return value;
}

inline uint64_t span_tokens(const PosencSpan &spans, uint64_t count) {
    uint64_t value = {};
    posenc::check(posenc_span_tokens(&spans, count, &value));
    return value;
}

inline int64_t span_positions(const PosencSpan &spans, uint64_t count, uint32_t after, uint64_t stride, int64_t *ids) {
    int64_t value = {};
    posenc::check(posenc_span_positions(&spans, count, after, stride, ids, &value));
    return value;
}

inline double query_scale_at(const PosencQueryScale &scale, uint64_t position) {
    double value = {};
    posenc::check(posenc_query_scale_at(&scale, position, &value));
    return value;
}

inline rope rope::of_model(const gpu &gpu, const model &model, uint64_t layer, uint64_t length, uint32_t element) {
    PosencRope *raw = nullptr;
    posenc::check(posenc_rope_of_model(gpu.get(), model.get(), layer, length, element, &raw));
    return rope(raw);
}

inline rope rope::from_hf(const gpu &gpu, const char *config, uint64_t layer, uint64_t length, uint32_t element) {
    PosencRope *raw = nullptr;
    posenc::check(posenc_rope_from_hf(gpu.get(), config, layer, length, element, &raw));
    return rope(raw);
}

inline double yarn_mscale(double factor, double mscale) {
    return posenc_yarn_mscale(factor, mscale);
}

inline double mla_logit_scale(double factor, double mscale_all_dim) {
    return posenc_mla_logit_scale(factor, mscale_all_dim);
}

inline double longrope_attention_factor(double factor, double original_context) {
    return posenc_longrope_attention_factor(factor, original_context);
}

inline prologue prologue::make(const gpu &gpu, const PosencPrologueSpec &spec, uint32_t element) {
    PosencPrologue *raw = nullptr;
    posenc::check(posenc_prologue_new(gpu.get(), &spec, element, &raw));
    return prologue(raw);
}

inline PosencLayerPrologue model::prologue(uint64_t layer) const {
    PosencLayerPrologue value = {};
    posenc::check(posenc_model_prologue(get(), layer, &value));
    return value;
}

inline prologue prologue::of_model(const gpu &gpu, const model &model, uint64_t layer, uint64_t length, uint32_t element) {
    PosencPrologue *raw = nullptr;
    posenc::check(posenc_prologue_of_model(gpu.get(), model.get(), layer, length, element, &raw));
    return prologue(raw);
}

inline prologue prologue::on(const gpu &gpu) const {
    PosencPrologue *raw = nullptr;
    posenc::check(posenc_prologue_on(get(), gpu.get(), &raw));
    return prologue(raw);
}

inline void prologue::apply(const PosencPrologueCall &call) const {
    posenc::check(posenc_prologue_apply(get(), &call));
}

} // namespace posenc

#endif // POSENC_HPP
