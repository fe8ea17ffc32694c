# posenc.h for ctypes. Written by adapters/c/tests/header.rs; do not edit.
# ruff: noqa
# fmt: off
import ctypes

from ._struct import PlainStruct, PlainVersioned, Struct, Versioned

ABI = 1
F32 = 0
F16 = 1
BF16 = 2
F64 = 3
HALF = 0
INTERLEAVED = 1
OK = 0
ARGUMENT = 1
VALUE = 2
DEVICE = 3
DRIVER = 4
INTERNAL = 5
I32 = 0
I64 = 1
U32 = 2
U16 = 3
U8 = 4
IDS = 0
STARTS = 1
PACKED = 2
COUNTED = 3
PLACE_COUNTED = 0
PLACE_BOTTOM_RIGHT = 1
PLACE_IDS = 2


class Buffer(PlainStruct):
    _fields_ = [
        ("data", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
    ]


class Ids(PlainStruct):
    _fields_ = [
        ("data", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class Positions(PlainStruct):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
        ("ids", Ids),
        ("axis_stride", ctypes.c_uint64),
        ("indptr", Buffer),
        ("sequences", ctypes.c_uint64),
    ]


class Tokens(PlainStruct):
    _fields_ = [
        ("batch", ctypes.c_uint64),
        ("tokens", ctypes.c_uint64),
        ("dim", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("strides", ctypes.c_uint64 * 2),
    ]


class Heads(PlainStruct):
    _fields_ = [
        ("batch", ctypes.c_uint64),
        ("tokens", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("dim", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("strides", ctypes.c_uint64 * 3),
    ]


class Logits(PlainStruct):
    _fields_ = [
        ("batch", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("queries", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("strides", ctypes.c_uint64 * 3),
    ]


class Numbers(PlainStruct):
    _fields_ = [
        ("batch", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
        ("entries", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("strides", ctypes.c_uint64 * 4),
    ]


class Place(PlainStruct):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("start", ctypes.c_int64),
        ("ids", Buffer),
        ("lengths", Buffer),
    ]


class Places(PlainStruct):
    _fields_ = [
        ("queries", Place),
        ("keys", Place),
        ("sequences", ctypes.c_uint64),
        ("packed_queries", Buffer),
        ("packed_keys", Buffer),
    ]
SAME = 0
OTHER = 1
EXACT = 0
HF_COMPAT = 1
GIVEN = 2
MIXED = 3
SCALING_NONE = 0
SCALING_LINEAR = 1
SCALING_NTK = 2
SCALING_LLAMA3 = 3
SCALING_YARN = 4
SCALING_DIVISORS = 5
SCALING_NTK_MIXED = 6
SCALING_NTK_DYNAMIC = 7
SCALING_NTK_STEPPED = 8
SCALING_LONGROPE = 9
SCALING_PROPORTIONAL = 10
RAMP_PAIRS = 0
RAMP_TURNS = 1
AXES_ONE = 0
AXES_SECTIONS = 1
AXES_INTERLEAVED = 2
AXES_LADDERS = 3
AXES_HEIGHT_WIDTH_FIRST = 4
AXES_TABLE = 5
AXES_DEALT = 6
AXES_BLOCKS = 7
AXES_ALTERNATING = 8
XPOS_QUERY = 0
XPOS_KEY = 1
OUT_OF_RANGE_CLAMP = 0
OUT_OF_RANGE_NAN = 1


class RopeSpec(Versioned):
    _fields_ = [
        ("rotary", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("base", ctypes.c_double),
        ("attention_factor", ctypes.c_double),
        ("pairing", ctypes.c_uint32),
        ("pairing_out", ctypes.c_uint32),
        ("angles", ctypes.c_uint32),
        ("scaling", ctypes.c_uint32),
        ("factor", ctypes.c_double),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("original_context", ctypes.c_double),
        ("exponent", ctypes.c_double),
        ("extrapolation", ctypes.c_double),
        ("not_truncated", ctypes.c_uint32),
        ("ramp", ctypes.c_uint32),
        ("length", ctypes.c_uint64),
        ("rotated", ctypes.c_uint64),
        ("divisors", ctypes.c_void_p),
        ("long_divisors", ctypes.c_void_p),
        ("divisor_count", ctypes.c_uint64),
        ("frequencies", ctypes.c_void_p),
        ("axis_of_pair", ctypes.c_void_p),
        ("axes", ctypes.c_uint32),
        ("axis_count", ctypes.c_uint32),
        ("axis_sizes", ctypes.c_uint32 * 4),
        ("fraction_bits", ctypes.c_uint32 * 4),
        ("mixed", ctypes.c_void_p),
        ("mixed_axes", ctypes.c_uint32),
        ("mixed_heads", ctypes.c_uint32),
    ]


class XPosSpec(Versioned):
    _fields_ = [
        ("rope", RopeSpec),
        ("gamma", ctypes.c_double),
        ("scale_base", ctypes.c_double),
        ("center", ctypes.c_int64),
    ]


class Operand(PlainStruct):
    _fields_ = [
        ("x", Buffer),
        ("heads", Heads),
        ("out", Buffer),
        ("out_heads", Heads),
    ]


class Table(PlainStruct):
    _fields_ = [
        ("cos", Buffer),
        ("sin", Buffer),
        ("rows", ctypes.c_uint64),
        ("stride", ctypes.c_uint64),
        ("element", ctypes.c_uint32),
        ("out_of_range", ctypes.c_uint32),
        ("flag", Buffer),
    ]


class RopeCall(PlainVersioned):
    _fields_ = [
        ("packed", ctypes.c_uint32),
        ("inverse", ctypes.c_uint32),
        ("xpos", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("q", Operand),
        ("k", Operand),
        ("positions", Positions),
        ("table", Table),
    ]


class SetFrequenciesCall(Versioned):
    _fields_ = [
        ("frequencies", Buffer),
        ("flag", Buffer),
    ]


class TensorGrad(Struct):
    _fields_ = [
        ("x", Buffer),
        ("heads", Heads),
        ("grad", Buffer),
        ("grad_heads", Heads),
    ]


class FrequencyGradCall(Versioned):
    _fields_ = [
        ("q", TensorGrad),
        ("k", TensorGrad),
        ("positions", Positions),
        ("out", Buffer),
    ]


class PositionGradCall(Versioned):
    _fields_ = [
        ("q", TensorGrad),
        ("k", TensorGrad),
        ("frequencies", Buffer),
        ("out", Buffer),
    ]


class FixedCall(Versioned):
    _fields_ = [
        ("positions", Buffer),
        ("element", ctypes.c_uint32),
        ("bits", ctypes.c_uint32),
        ("out", Buffer),
        ("flag", Buffer),
    ]
ODD_REFUSE = 0
ODD_ZERO = 1
ODD_LONGER = 2
FREQUENCIES_EXACT = 0
FREQUENCIES_F32 = 1
FREQUENCIES_F16 = 2
FREQUENCIES_BF16 = 3
ALONG_FRAMES = 0
ALONG_ROWS = 1
ALONG_COLUMNS = 2
BY_AXIS = 0
BY_WAVE = 1
BILINEAR = 0
BICUBIC = 1
WEIGHTING_EXACT = 0
WEIGHTING_TORCH_F32 = 1
ROWS_OFFSET = 0
ROWS_KEPT_BY_ID = 1
ROWS_KEPT_BY_MASK = 2
NORM_NONE = 0
NORM_LAYER = 1
NORM_RMS = 2


class SinusoidSpec(Versioned):
    _fields_ = [
        ("dim", ctypes.c_uint64),
        ("pairing", ctypes.c_uint32),
        ("cosine_first", ctypes.c_uint32),
        ("odd", ctypes.c_uint32),
        ("frequencies", ctypes.c_uint32),
        ("shift", ctypes.c_double),
        ("max_period", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("offset", ctypes.c_int64),
        ("has_padding", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("padding", ctypes.c_int64),
    ]


class SinusoidCall(Versioned):
    _fields_ = [
        ("x", Buffer),
        ("tokens", Tokens),
        ("positions", Positions),
        ("scale", ctypes.c_double),
    ]


class TimestepCall(Versioned):
    _fields_ = [
        ("out", Buffer),
        ("tokens", Tokens),
        ("t", Buffer),
        ("t_element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class Axis(Struct):
    _fields_ = [
        ("along", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("sinusoid", SinusoidSpec),
    ]


class GridSpec(Versioned):
    _fields_ = [
        ("blocks", ctypes.c_uint32),
        ("axis_count", ctypes.c_uint32),
        ("axes", ctypes.c_void_p),
    ]


class GridCall(Versioned):
    _fields_ = [
        ("x", Buffer),
        ("tokens", Tokens),
        ("frames", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
        ("columns", ctypes.c_uint64),
        ("scale", ctypes.c_double),
    ]


class GridMaskedCall(Versioned):
    _fields_ = [
        ("out", Buffer),
        ("tokens", Tokens),
        ("mask", Buffer),
        ("rows", ctypes.c_uint64),
        ("columns", ctypes.c_uint64),
        ("normalize", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("scale", ctypes.c_double),
        ("centre", ctypes.c_double),
    ]


class LearnedSpec(Versioned):
    _fields_ = [
        ("dim", ctypes.c_uint64),
        ("scale", ctypes.c_double),
        ("rows", ctypes.c_uint32),
        ("norm", ctypes.c_uint32),
        ("first", ctypes.c_int64),
        ("padded", ctypes.c_int64),
        ("padding", ctypes.c_int64),
        ("eps", ctypes.c_double),
    ]


class Tables(Struct):
    _fields_ = [
        ("token", Buffer),
        ("position", Buffer),
        ("types", Buffer),
        ("gain", Buffer),
        ("bias", Buffer),
    ]


class Lookup(Struct):
    _fields_ = [
        ("ids", Ids),
        ("types", Ids),
        ("mask", Buffer),
        ("positions", Positions),
    ]


class LearnedCall(Versioned):
    _fields_ = [
        ("x", Buffer),
        ("tokens", Tokens),
        ("tables", Tables),
        ("lookup", Lookup),
        ("flag", ctypes.c_void_p),
    ]


class RowsCall(Versioned):
    _fields_ = [
        ("rows", Buffer),
        ("batch", ctypes.c_uint64),
        ("tokens", ctypes.c_uint64),
        ("lookup", Lookup),
    ]


class NormGradCall(Versioned):
    _fields_ = [
        ("sum", Buffer),
        ("sum_tokens", Tokens),
        ("gain", Buffer),
        ("bias", Buffer),
        ("grad", Buffer),
        ("grad_tokens", Tokens),
        ("x", Buffer),
        ("x_tokens", Tokens),
        ("tables", Tables),
        ("lookup", Lookup),
        ("flag", ctypes.c_void_p),
        ("accumulate", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class TableGradCall(Versioned):
    _fields_ = [
        ("table", Buffer),
        ("rows", ctypes.c_uint64),
        ("grad", Buffer),
        ("tokens", Tokens),
        ("ids", Ids),
        ("order", Buffer),
        ("first", ctypes.c_uint64),
        ("scale", ctypes.c_double),
        ("has_skipped", ctypes.c_uint32),
        ("accumulate", ctypes.c_uint32),
        ("skipped", ctypes.c_int64),
    ]


class OrderCall(Versioned):
    _fields_ = [
        ("order", Buffer),
        ("ids", Ids),
        ("count", ctypes.c_uint64),
    ]


class ResampleSpec(Versioned):
    _fields_ = [
        ("from", ctypes.c_uint64 * 2),
        ("to", ctypes.c_uint64 * 2),
        ("prefix", ctypes.c_uint64),
        ("filter", ctypes.c_uint32),
        ("antialias", ctypes.c_uint32),
        ("factors", ctypes.c_double * 2),
        ("weighting", ctypes.c_uint32),
        ("align_corners", ctypes.c_uint32),
    ]


class ResampleCall(Versioned):
    _fields_ = [
        ("table", Buffer),
        ("table_tokens", Tokens),
        ("resampled", Buffer),
        ("resampled_tokens", Tokens),
        ("accumulate", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]
TERM_WHOLE = 0
TERM_DISTANCE = 1
TERM_WINDOW = 2
TERM_SHIFTED = 3
TERM_GIVEN = 4
TERM_ENDPOINTS = 5
TERM_DEBERTA = 6
BY_TABLE = 0
BY_QUERIES = 1
BY_KEYS = 2
KEY_MINUS_QUERY = 0
QUERY_MINUS_KEY = 1
OUTSIDE_CLAMP = 0
OUTSIDE_ZERO = 1
COORDINATES_QUERY_MINUS_KEY = 0
COORDINATES_KEY_MINUS_QUERY = 1
COORDINATES_ABSOLUTE = 2
COORDINATES_KEY = 3
WINDOW_BOTH = 0
WINDOW_ROWS = 1
WINDOW_COLUMNS = 2


class Distances(Struct):
    _fields_ = [
        ("sign", ctypes.c_uint32),
        ("outside", ctypes.c_uint32),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_uint64),
        ("entries", ctypes.c_uint64),
        ("lookup", ctypes.c_void_p),
    ]


class Deberta(Struct):
    _fields_ = [
        ("buckets", ctypes.c_uint64),
        ("max_positions", ctypes.c_uint64),
    ]


class Window(Struct):
    _fields_ = [
        ("height", ctypes.c_uint64),
        ("width", ctypes.c_uint64),
        ("stride", ctypes.c_uint64),
        ("prefix", ctypes.c_uint64),
        ("coordinates", ctypes.c_uint32),
        ("axes", ctypes.c_uint32),
        ("prefix_entries", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class ShiftedWindows(Struct):
    _fields_ = [
        ("height", ctypes.c_uint64),
        ("width", ctypes.c_uint64),
        ("window", ctypes.c_uint64 * 2),
        ("shift", ctypes.c_uint64 * 2),
    ]


class Given(Struct):
    _fields_ = [
        ("rows", ctypes.c_uint64),
        ("columns", ctypes.c_uint64),
        ("entries", ctypes.c_uint64),
    ]


class Term(Struct):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("by", ctypes.c_uint32),
        ("factor", ctypes.c_float),
        ("reserved", ctypes.c_uint32),
        ("distances", Distances),
        ("deberta", Deberta),
        ("window", Window),
        ("shifted", ShiftedWindows),
        ("given", Given),
    ]


class TermInputs(Struct):
    _fields_ = [
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("numbers", Buffer),
        ("numbers_shape", Numbers),
        ("key_numbers", Buffer),
        ("key_numbers_shape", Numbers),
        ("indices", Ids),
        ("query_at", Buffer),
        ("key_at", Buffer),
    ]
RESIZE_BILINEAR = 0
RESIZE_BICUBIC = 1
RESIZE_BICUBIC_ANTIALIAS = 2
RESIZE_GEOMETRIC = 3


class WindowResizeCall(Versioned):
    _fields_ = [
        ("window", Window),
        ("to", ctypes.c_uint64 * 2),
        ("resize", ctypes.c_uint32),
        ("element", ctypes.c_uint32),
        ("table", ctypes.c_void_p),
        ("table_len", ctypes.c_uint64),
        ("table_shape", Numbers),
        ("out", ctypes.c_void_p),
        ("out_len", ctypes.c_uint64),
    ]


class DecomposedAxisCall(Versioned):
    _fields_ = [
        ("table", ctypes.c_void_p),
        ("table_len", ctypes.c_uint64),
        ("dim", ctypes.c_uint64),
        ("queries", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("out", ctypes.c_void_p),
        ("out_len", ctypes.c_uint64),
    ]
SIDES_SYMMETRIC = 0
SIDES_SIGNED = 1
SIDES_HALVES = 2
KEY_ONLY_BLOOM = 0
KEY_ONLY_MPT = 1
KEY_ONLY_FLASH_ATTENTION = 2
KEY_ONLY_FALCON = 3
KERPLE_LOG = 0
KERPLE_POWER = 1


class AlibiSpec(Versioned):
    _fields_ = [
        ("total_heads", ctypes.c_uint64),
        ("first", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("max_bias", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("sides", ctypes.c_uint32),
        ("key_only", ctypes.c_uint32),
    ]


class KeyOnlySpec(Versioned):
    _fields_ = [
        ("alibi", AlibiSpec),
        ("library", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("keys", ctypes.c_uint64),
    ]


class SlopesSpec(Versioned):
    _fields_ = [
        ("batch", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("key_only", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class T5Spec(Versioned):
    _fields_ = [
        ("buckets", ctypes.c_uint64),
        ("max_distance", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("bidirectional", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("table", ctypes.c_void_p),
    ]


class RowSpec(Versioned):
    _fields_ = [
        ("heads", ctypes.c_uint64),
        ("first", ctypes.c_int64),
        ("distances", ctypes.c_uint64),
        ("values", ctypes.c_void_p),
        ("saturates", ctypes.c_uint32),
        ("key_only", ctypes.c_uint32),
    ]


class KerpleSpec(Versioned):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("heads", ctypes.c_uint64),
        ("p", ctypes.c_void_p),
        ("a", ctypes.c_void_p),
        ("least", ctypes.c_int64),
        ("most", ctypes.c_int64),
    ]


class SandwichSpec(Versioned):
    _fields_ = [
        ("total_heads", ctypes.c_uint64),
        ("first", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("width", ctypes.c_uint64),
        ("least", ctypes.c_int64),
        ("most", ctypes.c_int64),
    ]


class TermsSpec(Versioned):
    _fields_ = [
        ("terms", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
    ]


class FireSpec(Versioned):
    _fields_ = [
        ("c", ctypes.c_double),
        ("threshold", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("width", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
        ("in_weight", ctypes.c_void_p),
        ("in_bias", ctypes.c_void_p),
        ("out_weight", ctypes.c_void_p),
        ("out_bias", ctypes.c_void_p),
        ("reach", ctypes.c_uint64),
    ]


class BiasCall(Versioned):
    _fields_ = [
        ("x", Buffer),
        ("shape", Logits),
        ("places", Places),
        ("gates", Buffer),
        ("terms", ctypes.c_void_p),
        ("term_count", ctypes.c_uint64),
    ]


class SetTableCall(Versioned):
    _fields_ = [
        ("table", Buffer),
    ]


class SlopesGradSpec(Versioned):
    _fields_ = [
        ("heads", ctypes.c_uint64),
    ]


class DistanceGradCall(Versioned):
    _fields_ = [
        ("grad", Buffer),
        ("shape", Logits),
        ("places", Places),
        ("gates", Buffer),
        ("out", Buffer),
        ("factor", ctypes.c_float),
        ("reserved", ctypes.c_uint32),
    ]


class TermGradSpec(Versioned):
    _fields_ = [
        ("term", Term),
    ]


class TermGradCall(Versioned):
    _fields_ = [
        ("grad", Buffer),
        ("shape", Logits),
        ("places", Places),
        ("gates", Buffer),
        ("inputs", TermInputs),
        ("out", Buffer),
        ("out_shape", Numbers),
        ("factor", ctypes.c_float),
        ("reserved", ctypes.c_uint32),
    ]


class RelativeProductsSpec(Versioned):
    _fields_ = [
        ("term", Term),
    ]


class RelativeProductsCall(Versioned):
    _fields_ = [
        ("x", Buffer),
        ("shape", Logits),
        ("states", Buffer),
        ("states_shape", Heads),
        ("bias", Buffer),
        ("table", Buffer),
        ("table_shape", Numbers),
        ("places", Places),
    ]
LOG_COORDINATES_RELATIVE = 0
LOG_COORDINATES_ABSOLUTE = 1


class Swin2Spec(Versioned):
    _fields_ = [
        ("window", ctypes.c_uint64 * 2),
        ("pretrained", ctypes.c_uint64 * 2),
        ("coordinates", ctypes.c_uint32),
        ("limit", ctypes.c_float),
        ("hidden", ctypes.c_uint64),
        ("heads", ctypes.c_uint64),
    ]


class Swin2Weights(Struct):
    _fields_ = [
        ("w1", Buffer),
        ("b1", Buffer),
        ("w2", Buffer),
        ("b2", Buffer),
    ]


class Swin2Call(Versioned):
    _fields_ = [
        ("weights", Swin2Weights),
        ("table", Buffer),
    ]


class Swin2GradCall(Versioned):
    _fields_ = [
        ("weights", Swin2Weights),
        ("table_grad", Buffer),
        ("out", Swin2Weights),
    ]
GATES_LOGS = 0
GATES_LOGITS = 1


class GateSumsSpec(Versioned):
    _fields_ = [
        ("gates", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class GateSumsCall(Versioned):
    _fields_ = [
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("gates", Buffer),
        ("gates_shape", Numbers),
        ("out", Buffer),
        ("out_shape", Numbers),
        ("state", Buffer),
    ]


class GateSumsGradCall(Versioned):
    _fields_ = [
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("gates", Buffer),
        ("gates_shape", Numbers),
        ("query_grad", Buffer),
        ("query_grad_shape", Numbers),
        ("key_grad", Buffer),
        ("key_grad_shape", Numbers),
        ("grad", Buffer),
        ("grad_shape", Numbers),
    ]
SOFTCAP_THEN_BIAS = 0
BIAS_THEN_SOFTCAP = 1
BIAS_THEN_SCALE = 2


class SoftmaxSpec(Versioned):
    _fields_ = [
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("order", ctypes.c_uint32),
        ("has_left", ctypes.c_uint32),
        ("left", ctypes.c_uint32),
        ("has_right", ctypes.c_uint32),
        ("right", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class Inputs(PlainStruct):
    _fields_ = [
        ("bias", ctypes.c_void_p),
        ("places", Places),
        ("terms", ctypes.c_void_p),
        ("term_count", ctypes.c_uint64),
        ("gates", Buffer),
        ("mask", Buffer),
        ("mask_shape", Logits),
        ("sinks", Buffer),
        ("scales", Buffer),
    ]


class SoftmaxCall(PlainVersioned):
    _fields_ = [
        ("x", Buffer),
        ("shape", Logits),
        ("out", Buffer),
        ("out_shape", Logits),
        ("inputs", Inputs),
        ("lse", Buffer),
    ]


class SoftmaxGradCall(Versioned):
    _fields_ = [
        ("probabilities", Buffer),
        ("probabilities_shape", Logits),
        ("grad", Buffer),
        ("grad_shape", Logits),
        ("out", Buffer),
        ("out_shape", Logits),
        ("inputs", Inputs),
        ("logits", Buffer),
        ("logits_shape", Logits),
        ("bias_grad", Buffer),
        ("dots", Buffer),
    ]


class SinkGradCall(Versioned):
    _fields_ = [
        ("sinks", Buffer),
        ("lse", Buffer),
        ("dots", Buffer),
        ("grad", Buffer),
        ("shape", Logits),
    ]


class RelativeValuesSpec(Versioned):
    _fields_ = [
        ("distances", Distances),
    ]


class RelativeValuesCall(Versioned):
    _fields_ = [
        ("probabilities", Buffer),
        ("shape", Logits),
        ("table", Buffer),
        ("table_shape", Numbers),
        ("element", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("z", Buffer),
        ("z_shape", Heads),
        ("places", Places),
    ]


class RelativeValuesGradCall(Versioned):
    _fields_ = [
        ("dz", Buffer),
        ("dz_shape", Heads),
        ("table", Buffer),
        ("table_shape", Numbers),
        ("element", ctypes.c_uint32),
        ("add", ctypes.c_uint32),
        ("dp", Buffer),
        ("dp_shape", Logits),
        ("places", Places),
    ]


class RelativeTableGradSpec(Versioned):
    _fields_ = [
        ("distances", Distances),
        ("heads", ctypes.c_uint64),
        ("dim", ctypes.c_uint64),
    ]


class RelativeTableGradCall(Versioned):
    _fields_ = [
        ("probabilities", Buffer),
        ("shape", Logits),
        ("dz", Buffer),
        ("dz_shape", Heads),
        ("places", Places),
        ("out", Buffer),
    ]


class MergeSpec(Versioned):
    _fields_ = [
        ("reserved", ctypes.c_uint64),
    ]


class State(Struct):
    _fields_ = [
        ("out", Buffer),
        ("heads", Heads),
        ("lse", Buffer),
        ("lse_shape", Numbers),
    ]


class MergeCall(Versioned):
    _fields_ = [
        ("a", State),
        ("b", State),
        ("result", State),
    ]


class MergeGradCall(Versioned):
    _fields_ = [
        ("a", State),
        ("b", State),
        ("grad", State),
        ("a_grad", State),
        ("b_grad", State),
    ]
QUERY_SCALE_ONE = 0
QUERY_SCALE_LLAMA4 = 1
QUERY_SCALE_MISTRAL = 2
QUERY_SCALE_LOG_N = 3
QUERY_SCALE_INKLING = 4
EMBEDDING_NONE = 0
EMBEDDING_LEARNED = 1
EMBEDDING_SINUSOID = 2
LOGIT_BIAS_NONE = 0
LOGIT_BIAS_ALIBI = 1
LOGIT_BIAS_T5 = 2
LOGIT_BIAS_RELATIVE = 3
SPAN_TEXT = 0
SPAN_TOGETHER = 1
SPAN_PATCHES = 2
SPAN_SOUNDING = 3
MIX_CHUNKS = 0
MIX_TIME = 1
AFTER_LARGEST = 0
AFTER_SPACE = 1
GRID_AXIS_TIME = 0
GRID_AXIS_ROW = 1
GRID_AXIS_COLUMN = 2
GRID_COORDINATE_INDEX = 0
GRID_COORDINATE_CENTER = 1
GRID_EXTENT_OWN = 0
GRID_EXTENT_LONGER = 1
GRID_EXTENT_SHORTER = 2


class QueryScale(Struct):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("factor", ctypes.c_double),
        ("context", ctypes.c_double),
    ]


class Layer(Struct):
    _fields_ = [
        ("has_rope", ctypes.c_uint32),
        ("has_dual_chunk", ctypes.c_uint32),
        ("head", ctypes.c_uint64),
        ("rotary", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("logit_scale", ctypes.c_double),
        ("query_scale", QueryScale),
        ("chunk", ctypes.c_int64),
        ("local", ctypes.c_int64),
    ]


class Added(Struct):
    _fields_ = [
        ("embedding", ctypes.c_uint32),
        ("bias", ctypes.c_uint32),
        ("learned", LearnedSpec),
        ("table_rows", ctypes.c_uint64),
        ("sinusoid", SinusoidSpec),
        ("heads", ctypes.c_uint64),
        ("max_bias", ctypes.c_double),
        ("buckets", ctypes.c_uint64),
        ("max_distance", ctypes.c_uint64),
        ("has_encoder", ctypes.c_uint32),
        ("has_decoder", ctypes.c_uint32),
        ("has_queries", ctypes.c_uint32),
        ("has_keys", ctypes.c_uint32),
        ("states", ctypes.c_uint64),
        ("queries", Distances),
        ("keys", Distances),
    ]


class Span(Struct):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("mix", ctypes.c_uint32),
        ("tokens", ctypes.c_uint64),
        ("grid", ctypes.c_uint64 * 3),
        ("merge", ctypes.c_uint64),
        ("temporal_merge", ctypes.c_uint64),
        ("interval", ctypes.c_double),
        ("chunk", ctypes.c_uint64),
    ]


class PatchGrid(Struct):
    _fields_ = [
        ("axis_count", ctypes.c_uint32),
        ("axes", ctypes.c_uint32 * 3),
        ("coordinate", ctypes.c_uint32),
        ("extent", ctypes.c_uint32),
        ("first", ctypes.c_int64),
        ("bits", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("merge", ctypes.c_uint64),
        ("before", ctypes.c_uint64),
        ("after", ctypes.c_uint64),
    ]
HEAD_NORM_NONE = 0
HEAD_NORM_RMS = 1
HEAD_NORM_L2 = 2
NORM_WEIGHT_NONE = 0
NORM_WEIGHT = 1
NORM_ONE_PLUS_WEIGHT = 2
NORM_OVER_HEAD = 0
NORM_OVER_ALL_HEADS = 1
ROUNDING_ONCE = 0
ROUNDING_STEPS = 1
ROUNDING_BEFORE_WEIGHT = 2
CACHE_SLOTS = 0
CACHE_PAGES = 1
CACHE_ROWS = 2
STORE_SAME = 0
STORE_E4M3 = 1
STORE_E5M2 = 2
STORE_INT8 = 3
SCALE_GIVEN = 0
SCALE_DYNAMIC = 1
SCALE_INLINE = 2
TO_CACHE = 0
TO_PLACE = 1
TO_OUT = 2


class Branch(Struct):
    _fields_ = [
        ("norm", ctypes.c_uint32),
        ("weight", ctypes.c_uint32),
        ("over", ctypes.c_uint32),
        ("rounding", ctypes.c_uint32),
        ("bias", ctypes.c_uint32),
        ("rope", ctypes.c_uint32),
        ("eps", ctypes.c_double),
    ]


class PrologueSpec(Versioned):
    _fields_ = [
        ("rope", RopeSpec),
        ("q", Branch),
        ("k", Branch),
        ("v", Branch),
        ("query_scale", QueryScale),
        ("rope_first", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class LayerPrologue(Struct):
    _fields_ = [
        ("q", Branch),
        ("k", Branch),
        ("v", Branch),
        ("query_scale", QueryScale),
        ("rope_first", ctypes.c_uint32),
        ("gated", ctypes.c_uint32),
        ("latent", ctypes.c_uint32),
        ("shares_keys", ctypes.c_uint32),
    ]


class Projected(Struct):
    _fields_ = [
        ("x", Buffer),
        ("heads", Heads),
        ("out", Buffer),
        ("out_heads", Heads),
        ("to", ctypes.c_uint32),
        ("packed", ctypes.c_uint32),
        ("weight", Buffer),
        ("bias", Buffer),
    ]


class Stored(Struct):
    _fields_ = [
        ("x", Buffer),
        ("heads", Heads),
        ("store", ctypes.c_uint32),
        ("scale", ctypes.c_uint32),
        ("scales", Buffer),
        ("scale_heads", Heads),
    ]


class Cache(Struct):
    _fields_ = [
        ("k", Stored),
        ("v", Stored),
        ("rows", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("slots", Ids),
        ("width", ctypes.c_uint64),
        ("first", Positions),
        ("flag", Buffer),
    ]


class PrologueCall(Versioned):
    _fields_ = [
        ("q", Projected),
        ("k", Projected),
        ("v", Projected),
        ("positions", Positions),
        ("cache", Cache),
        ("q_codes", Stored),
    ]


FUNCTIONS = {}
FUNCTIONS["posenc_gpu_new"] = ctypes.c_int32, [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_cpu_new"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_gpu_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_last_error"] = ctypes.c_void_p, []
FUNCTIONS["posenc_version"] = ctypes.c_uint32, []
FUNCTIONS["posenc_rope_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_rope_xpos_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_rope_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_rope_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_rope_rotate"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_rope_set_frequencies"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_rope_grad_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_rope_grad_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_rope_grad_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_rope_grad_frequencies"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_rope_grad_positions"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_fixed_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_fixed_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_fixed_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_fixed_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_sinusoid_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_sinusoid_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_sinusoid_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_sinusoid_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_sinusoid_add"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_timestep_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_timestep_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_timestep_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_timestep_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_grid_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_grid_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_grid_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_grid_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_grid_add"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_grid_write_masked"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_error_flag_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_error_flag_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_error_flag_check"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_learned_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_learned_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_learned_gather"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_rows"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_norm"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_counted"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_order"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_learned_grad_table"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_resample_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_resample_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_resample_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_resample_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_resample_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_term_swin"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_beit"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_maxvit"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_levit"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_decomposed"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_term_shaw"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_vits"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_speecht5"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_gemma_audio"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_bert"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_transformer_xl"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_xlnet"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_conformer"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_inkling"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_deberta_v1"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_deberta"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_term_entries"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_window_resize"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_decomposed_axis"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_bias_alibi_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_key_only_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_slopes_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_t5_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_row_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_kerple_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_sandwich_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_fire_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_terms_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_bias_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_bias_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_bias_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_bias_add"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_bias_set_table"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_bias_numbers"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_t5_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_slopes_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_row_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_kerple_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_len"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_distance_grad_apply"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_fire_grad_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_fire_grad_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_fire_grad_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_fire_grad_len"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_fire_grad_apply"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_term_grad_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_term_grad_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_term_grad_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_term_grad_apply"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_term_grad_apply_keys"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_products_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_relative_products_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_products_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_relative_products_add"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_products_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_swin2_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_swin2_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_swin2_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_swin2_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_swin2_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_swin2_logit_scale"] = ctypes.c_float, [ctypes.c_float]
FUNCTIONS["posenc_gate_sums_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_gate_sums_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_gate_sums_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_gate_sums_write"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_gate_sums_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_softmax_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_softmax_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_softmax_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_softmax_apply"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_softmax_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_softmax_sink_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_values_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_relative_values_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_values_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_relative_values_add"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_values_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_table_grad_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_relative_table_grad_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_table_grad_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_relative_table_grad_len"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_relative_table_grad_apply"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_merge_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_merge_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_merge_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_merge_states"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_merge_grad"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_from_hf"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_from_hf_as"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_from_mistral"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_from_gguf"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_open"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_model_name"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_describe"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_context"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_layers"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_model_layer"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_model_added"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_model_grid"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_patch_tokens"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_patch_positions"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_timed_windows"] = ctypes.c_int32, [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_span_tokens"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_span_positions"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_query_scale_at"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_rope_of_model"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_rope_from_hf"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_yarn_mscale"] = ctypes.c_double, [ctypes.c_double, ctypes.c_double]
FUNCTIONS["posenc_mla_logit_scale"] = ctypes.c_double, [ctypes.c_double, ctypes.c_double]
FUNCTIONS["posenc_longrope_attention_factor"] = ctypes.c_double, [ctypes.c_double, ctypes.c_double]
FUNCTIONS["posenc_prologue_new"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_model_prologue"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
FUNCTIONS["posenc_prologue_of_model"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
FUNCTIONS["posenc_prologue_on"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
FUNCTIONS["posenc_prologue_free"] = ctypes.c_int32, [ctypes.c_void_p]
FUNCTIONS["posenc_prologue_apply"] = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p]
