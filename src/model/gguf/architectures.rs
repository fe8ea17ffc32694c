//! What carries position in each of llama.cpp's 154 architectures, by what its graph does.
//!
//! Read from the sources that the crate llama-cpp-sys-2 0.1.161 packs: names are `LLM_ARCH_NAMES` of `src/llama-arch.cpp`, pairs
//! `llama_model_rope_type` of `src/llama-model.cpp`, layers `load_arch_hparams` and the graph of `src/models`. The second column
//! is the line of `src/models` that turns pairs, adds a table or sets a bias; where there is none, that of the graph.

/// One architecture.
#[derive(Clone, Copy)]
pub(super) struct Architecture {
    pub name: &'static str,
    pub source: &'static str,
    pub carrier: Carrier,
    pub rotates: Rotates,
    pub windows: Option<Windows>,
    /// layers without attention where neither `attention.recurrent_layers` nor the interval is given: all but each n-th
    pub hybrid: Option<usize>,
    /// the rotary channels stand behind the others of a head
    pub last: bool,
    /// logits have DeepSeek's factor (`kq_scale`)
    pub mscale: bool,
    /// how `rope.scaling.yarn_log_multiplier` is stored; `None` if it is not read
    pub log_multiplier: Option<f64>,
    /// `rope.scaling.alpha` rescales the base when the file is loaded
    pub alpha: bool,
    /// full layers rotate half of `rope.dimension_count`
    pub half_of_full: bool,
    /// keys that the graph ignores
    pub ignores: Ignores,
    /// queries of layers without RoPE are scaled (Llama 4)
    pub temperature: bool,
    /// ALiBi in place of RoPE in a model of 40 layers
    pub alibi_of_40: bool,
}

/// What carries position.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Carrier {
    Rope(Pairs),
    /// a table of `context_length` rows, added to the tokens
    Learned,
    /// ALiBi with a `max_bias` of 8
    Alibi,
    /// ALiBi with `attention.max_alibi_bias`, and a table if the file holds one; none where the key is absent or 0
    AlibiKey {
        learned: bool,
    },
    /// `attention.relative_buckets_count` buckets up to a distance of 128
    T5 {
        decoder: bool,
    },
    /// nothing: the text says what gives order
    None(&'static str),
    /// no model of text; the text says why
    Refused(&'static str),
}

/// How channels are paired.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pairs {
    /// interleaved
    Norm,
    /// halves
    Neox,
    /// halves, axes by sections
    Sections,
    /// interleaved, or halves and axes by sections where there are any
    NormOrSections,
    /// halves, and axes by sections where there are any
    NeoxOrSections,
    /// halves, axes in turn
    InTurn,
}

/// Which layers rotate.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rotates {
    All,
    /// those with a window, where there are windows
    Windows,
    /// those with a window, and the first `leading_dense_block_count`
    WindowsAndDense,
    /// all but each fourth: the layers 3, 7, ...
    AllButLast,
    /// as `AllButLast`; all, if `attention.sliding_window` is 0
    AllButLastUnlessZero,
    /// all but the layers 0, 4, 8, ... where there are windows, else all
    AllButFirst,
    /// those with a 1 in `attention.rope_pattern`
    Pattern,
    /// all, or none if `rope.scaling.finetuned` is false
    Switch,
    /// all: plain where `attention.compress_ratios` is 0, else scaled on `attention.compress_rope_freq_base`
    Compressed,
}

/// Layers with a window.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    /// whether they are there without `attention.sliding_window`
    pub always: bool,
    /// each `every`-th layer is full; `None` if the metadata must say
    pub every: Option<usize>,
    /// whether layer 0 is full, or the last of each `every`
    pub full_first: bool,
    pub base: Base,
    /// whether they are scaled as the full layers are
    pub scaled: bool,
    /// of a model of so many layers alone
    pub of_layers: Option<usize>,
}

/// The base of layers with a window.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Base {
    /// `rope.freq_base_swa`, or 10000
    Own,
    /// `rope.freq_base_swa`, or that of the full layers
    Full,
    /// that of the full layers
    Fixed,
}

/// Keys that a graph does not use.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Ignores {
    None,
    /// those of the scaling, and the count of rotated channels
    Scaling,
    /// the base too, which is 10000
    BaseToo,
}

impl Windows {
    const fn keep(self) -> Self {
        Self { scaled: true, ..self }
    }

    const fn optional(self) -> Self {
        Self { always: false, ..self }
    }

    const fn full_first(self) -> Self {
        Self { full_first: true, ..self }
    }

    const fn of_64_layers(self) -> Self {
        Self { of_layers: Some(64), ..self }
    }
}

const fn every(every: usize, base: Base) -> Windows {
    Windows { always: true, every: Some(every), full_first: false, base, scaled: false, of_layers: None }
}

const fn listed(base: Base) -> Windows {
    Windows { every: None, ..every(1, base) }
}

impl Architecture {
    const fn rotates(self, rotates: Rotates) -> Self {
        Self { rotates, ..self }
    }

    const fn windows(self, windows: Windows) -> Self {
        Self { windows: Some(windows), ..self }
    }

    const fn hybrid(self, every: usize) -> Self {
        Self { hybrid: Some(every), ..self }
    }

    const fn last(self) -> Self {
        Self { last: true, ..self }
    }

    const fn mscale(self) -> Self {
        Self { mscale: true, ..self }
    }

    const fn log_multiplier(self, unit: f64) -> Self {
        Self { log_multiplier: Some(unit), ..self }
    }

    const fn alpha(self) -> Self {
        Self { alpha: true, ..self }
    }

    const fn half_of_full(self) -> Self {
        Self { half_of_full: true, ..self }
    }

    const fn ignores(self, ignores: Ignores) -> Self {
        Self { ignores, ..self }
    }

    const fn temperature(self) -> Self {
        Self { temperature: true, ..self }
    }

    const fn alibi_of_40_layers(self) -> Self {
        Self { alibi_of_40: true, ..self }
    }
}

const fn row(name: &'static str, source: &'static str, carrier: Carrier) -> Architecture {
    Architecture {
        name,
        source,
        carrier,
        rotates: Rotates::All,
        windows: None,
        hybrid: None,
        last: false,
        mscale: false,
        log_multiplier: None,
        alpha: false,
        half_of_full: false,
        ignores: Ignores::None,
        temperature: false,
        alibi_of_40: false,
    }
}

const fn rope(name: &'static str, source: &'static str, pairs: Pairs) -> Architecture {
    row(name, source, Carrier::Rope(pairs))
}

pub(super) fn architecture(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.name == name)
}

const RECURRENT: &str = "nothing: order comes from the recurrent layers";
const NOPE: &str = "nothing: latent attention without positions beside recurrent layers";

#[rustfmt::skip]
pub(super) static ARCHITECTURES: &[Architecture] = &[
    row("clip", "clip.cpp:16", Carrier::Refused("llama.cpp reads its projectors elsewhere")),
    rope("llama", "llama.cpp:146", Pairs::Norm),
    rope("llama4", "llama4.cpp:162", Pairs::Norm).windows(every(4, Base::Full).keep()).rotates(Rotates::AllButLastUnlessZero).temperature(),
    rope("deci", "deci.cpp:128", Pairs::Norm),
    rope("falcon", "falcon.cpp:94", Pairs::Neox),
    rope("grok", "grok.cpp:119", Pairs::Neox),
    row("gpt2", "gpt2.cpp:74", Carrier::Learned),
    row("gptj", "no graph", Carrier::Refused("llama.cpp has no graph for it")),
    rope("gptneox", "gptneox.cpp:116", Pairs::Neox),
    row("mpt", "mpt.cpp:6", Carrier::AlibiKey { learned: true }),
    rope("baichuan", "baichuan.cpp:79", Pairs::Norm).alibi_of_40_layers(),
    row("starcoder", "starcoder.cpp:75", Carrier::Learned),
    row("refact", "refact.cpp:12", Carrier::Alibi),
    row("bert", "bert.cpp:90", Carrier::Learned),
    rope("modern-bert", "modern-bert.cpp:175", Pairs::Neox).windows(every(3, Base::Own).optional().full_first()),
    rope("nomic-bert", "bert.cpp:128", Pairs::Neox),
    rope("nomic-bert-moe", "bert.cpp:128", Pairs::Neox),
    rope("neo-bert", "neo-bert.cpp:73", Pairs::Norm),
    row("jina-bert-v2", "jina-bert-v2.cpp:5", Carrier::Alibi),
    rope("jina-bert-v3", "bert.cpp:128", Pairs::Neox),
    rope("eurobert", "eurobert.cpp:65", Pairs::Neox),
    row("bloom", "bloom.cpp:18", Carrier::Alibi),
    rope("stablelm", "stablelm.cpp:99", Pairs::Neox),
    rope("qwen", "qwen.cpp:74", Pairs::Neox),
    rope("qwen2", "qwen2.cpp:86", Pairs::Neox),
    rope("qwen2moe", "qwen2moe.cpp:98", Pairs::Neox),
    rope("qwen2vl", "qwen2vl.cpp:78", Pairs::Sections),
    rope("qwen3", "qwen3.cpp:91", Pairs::Neox),
    rope("qwen3moe", "qwen3moe.cpp:100", Pairs::Neox),
    rope("qwen3next", "qwen3next.cpp:278", Pairs::Neox).hybrid(4),
    rope("qwen3vl", "qwen3vl.cpp:102", Pairs::InTurn),
    rope("qwen3vlmoe", "qwen3vlmoe.cpp:106", Pairs::InTurn),
    rope("qwen35", "qwen35.cpp:313", Pairs::InTurn).hybrid(4),
    rope("qwen35moe", "qwen35moe.cpp:323", Pairs::InTurn).hybrid(4),
    rope("clef", "clef.cpp:392", Pairs::InTurn).hybrid(4),
    rope("qwen4exp", "qwen4exp.cpp:784", Pairs::InTurn).hybrid(4),
    rope("phi2", "phi2.cpp:77", Pairs::Neox),
    rope("phi3", "phi3.cpp:107", Pairs::Neox),
    rope("phimoe", "phi3.cpp:107", Pairs::Neox),
    rope("plamo", "plamo.cpp:72", Pairs::Neox),
    rope("plamo2", "plamo2.cpp:239", Pairs::Neox),
    rope("plamo3", "plamo3.cpp:131", Pairs::Neox).windows(every(8, Base::Own).optional()),
    rope("codeshell", "codeshell.cpp:83", Pairs::Neox),
    rope("orion", "orion.cpp:76", Pairs::Neox),
    rope("internlm2", "internlm2.cpp:74", Pairs::Norm),
    rope("minicpm", "granite.cpp:218", Pairs::Norm),
    rope("minicpm3", "minicpm3.cpp:165", Pairs::Neox).last(),
    rope("gemma", "gemma.cpp:72", Pairs::Neox),
    rope("gemma2", "gemma2.cpp:94", Pairs::Neox).windows(every(2, Base::Full).keep()),
    rope("gemma3", "gemma3.cpp:132", Pairs::Neox).windows(every(6, Base::Own).optional()),
    rope("gemma3n", "gemma3n.cpp:161", Pairs::Neox).windows(every(5, Base::Own)),
    rope("gemma4", "gemma4.cpp:226", Pairs::Neox).windows(listed(Base::Own)),
    rope("gemma4-assistant", "gemma4-assistant.cpp:146", Pairs::Neox).windows(listed(Base::Own)),
    rope("gemma-embedding", "gemma-embedding.cpp:108", Pairs::Neox).windows(every(6, Base::Own)),
    rope("starcoder2", "starcoder2.cpp:92", Pairs::Neox),
    row("mamba", "mamba.cpp:83", Carrier::None(RECURRENT)),
    row("mamba2", "mamba.cpp:83", Carrier::None(RECURRENT)),
    rope("maple", "maple.cpp:95", Pairs::Neox).windows(listed(Base::Full).keep()).rotates(Rotates::Windows),
    row("jamba", "jamba.cpp:104", Carrier::None(RECURRENT)),
    rope("falcon-h1", "falcon-h1.cpp:142", Pairs::Neox),
    rope("xverse", "xverse.cpp:72", Pairs::Norm),
    rope("command-r", "command-r.cpp:83", Pairs::Norm),
    rope("cohere2", "cohere2.cpp:90", Pairs::Norm).windows(every(4, Base::Fixed).keep()).rotates(Rotates::Windows),
    rope("cohere2moe", "cohere2moe.cpp:187", Pairs::Norm).windows(every(4, Base::Fixed).keep().full_first()).rotates(Rotates::WindowsAndDense),
    rope("dbrx", "dbrx.cpp:79", Pairs::Neox),
    rope("olmo", "olmo.cpp:76", Pairs::Norm),
    rope("olmo2", "olmo2.cpp:121", Pairs::Neox).windows(every(4, Base::Fixed).optional()),
    rope("olmoe", "olmoe.cpp:103", Pairs::Neox),
    rope("muse-glimmer", "muse-glimmer.cpp:113", Pairs::Norm).windows(every(4, Base::Full)).rotates(Rotates::Windows),
    rope("openelm", "openelm.cpp:106", Pairs::Neox),
    rope("arctic", "arctic.cpp:89", Pairs::Norm),
    rope("deepseek", "deepseek.cpp:112", Pairs::Norm),
    rope("deepseek2", "deepseek2.cpp:534", Pairs::Norm).last().mscale().log_multiplier(0.1),
    rope("deepseek2-ocr", "deepseek2.cpp:486", Pairs::Neox).ignores(Ignores::Scaling),
    rope("deepseek32", "deepseek32.cpp:233", Pairs::Norm).last().mscale().log_multiplier(0.1),
    rope("deepseek4", "deepseek4.cpp:508", Pairs::Norm).last().rotates(Rotates::Compressed),
    rope("chatglm", "chatglm.cpp:90", Pairs::Norm),
    rope("glm4", "glm4.cpp:109", Pairs::NormOrSections),
    rope("glm4moe", "glm4-moe.cpp:212", Pairs::NeoxOrSections),
    rope("glm-dsa", "glm-dsa.cpp:271", Pairs::Norm).last().mscale(),
    rope("bitnet", "bitnet.cpp:81", Pairs::Neox),
    row("t5", "t5.cpp:275", Carrier::T5 { decoder: true }),
    row("t5encoder", "t5.cpp:275", Carrier::T5 { decoder: false }),
    row("jais", "jais.cpp:5", Carrier::AlibiKey { learned: false }),
    rope("jais2", "jais2.cpp:87", Pairs::Neox),
    rope("nemotron", "nemotron.cpp:84", Pairs::Neox),
    row("nemotron_h", "nemotron-h.cpp:184", Carrier::None(RECURRENT)),
    row("nemotron_h_moe", "nemotron-h.cpp:184", Carrier::None(RECURRENT)),
    rope("exaone", "exaone.cpp:81", Pairs::Neox),
    rope("exaone4", "exaone4.cpp:128", Pairs::Neox).windows(every(4, Base::Fixed).keep().of_64_layers()).rotates(Rotates::Windows),
    rope("exaone-moe", "exaone-moe.cpp:151", Pairs::Neox).windows(every(4, Base::Fixed).keep()).rotates(Rotates::Windows),
    row("rwkv6", "rwkv6.cpp:90", Carrier::None(RECURRENT)),
    row("rwkv6qwen2", "rwkv6qwen2.cpp:80", Carrier::None(RECURRENT)),
    row("rwkv7", "rwkv7.cpp:120", Carrier::None(RECURRENT)),
    row("arwkv7", "arwkv7.cpp:116", Carrier::None(RECURRENT)),
    rope("granite", "granite.cpp:218", Pairs::Norm).rotates(Rotates::Switch),
    rope("granitemoe", "granite.cpp:218", Pairs::Norm),
    rope("granitehybrid", "granite-hybrid.cpp:212", Pairs::Norm).rotates(Rotates::Switch),
    rope("graniteswitch", "granite-switch.cpp:369", Pairs::Norm).rotates(Rotates::Switch),
    rope("granite_swa", "granite-swa.cpp:214", Pairs::Norm).rotates(Rotates::Pattern),
    rope("chameleon", "chameleon.cpp:106", Pairs::Norm),
    row("wavtokenizer-dec", "wavtokenizer-dec.cpp:114", Carrier::None("nothing: order comes from the convolutions")),
    rope("plm", "plm.cpp:136", Pairs::Norm).last(),
    rope("bailingmoe", "bailingmoe.cpp:93", Pairs::Norm),
    rope("bailingmoe2", "bailingmoe2.cpp:123", Pairs::Neox),
    rope("bailingmoe3", "bailingmoe3.cpp:335", Pairs::NormOrSections).last(),
    rope("dots1", "dots1.cpp:109", Pairs::Neox),
    rope("dots3note", "dots3note.cpp:214", Pairs::Norm).windows(listed(Base::Own).keep()).last(),
    rope("arcee", "arcee.cpp:86", Pairs::Norm),
    rope("afmoe", "afmoe.cpp:162", Pairs::Neox).windows(every(4, Base::Full).keep().optional()).rotates(Rotates::AllButLast),
    rope("laguna", "laguna.cpp:218", Pairs::Neox).windows(every(4, Base::Full).optional().full_first()),
    rope("ernie4_5", "ernie4-5.cpp:108", Pairs::Norm),
    rope("ernie4_5-moe", "ernie4-5.cpp:108", Pairs::Norm),
    rope("hunyuan-moe", "hunyuan-moe.cpp:94", Pairs::Neox),
    rope("hunyuan-dense", "hunyuan-vl.cpp:105", Pairs::Neox).alpha(),
    rope("hunyuan_vl", "hunyuan-vl.cpp:105", Pairs::NeoxOrSections).alpha(),
    rope("hy_v3", "hy-v3.cpp:138", Pairs::Neox),
    rope("hy_v4", "hy-v4.cpp:302", Pairs::Norm).last(),
    rope("smollm3", "smollm3.cpp:84", Pairs::Norm).rotates(Rotates::AllButLast),
    rope("gpt-oss", "openai-moe.cpp:95", Pairs::Neox).windows(every(2, Base::Full).keep()),
    rope("lfm2", "lfm2.cpp:146", Pairs::Neox),
    rope("lfm2moe", "lfm2.cpp:146", Pairs::Neox),
    rope("dream", "dream.cpp:84", Pairs::Neox),
    rope("smallthinker", "smallthinker.cpp:123", Pairs::Neox).windows(every(4, Base::Full).keep().optional().full_first()).rotates(Rotates::AllButFirst),
    rope("llada", "llada.cpp:99", Pairs::Norm),
    rope("llada-moe", "llada-moe.cpp:93", Pairs::Neox),
    rope("seed_oss", "seed-oss.cpp:84", Pairs::Neox),
    rope("grovemoe", "grovemoe.cpp:103", Pairs::Neox),
    rope("apertus", "apertus.cpp:99", Pairs::Neox),
    rope("minimax-01", "minimax-01.cpp:258", Pairs::Neox).hybrid(8),
    rope("hrm_text", "hrm-text.cpp:117", Pairs::Neox),
    rope("minimax-m2", "minimax-m2.cpp:95", Pairs::Neox),
    rope("minimax-m3", "minimax-m3.cpp:321", Pairs::Neox),
    rope("cogvlm", "cogvlm.cpp:116", Pairs::Neox).ignores(Ignores::BaseToo),
    rope("rnd1", "rnd1.cpp:102", Pairs::Neox),
    rope("pangu-embedded", "pangu-embed.cpp:91", Pairs::Neox),
    rope("mistral3", "mistral3.cpp:137", Pairs::Norm).log_multiplier(1.0),
    rope("eagle3", "eagle3.cpp:241", Pairs::Norm),
    rope("dflash", "dflash.cpp:598", Pairs::NeoxOrSections),
    rope("mistral4", "deepseek2.cpp:534", Pairs::Norm).last().mscale().log_multiplier(0.1),
    rope("paddleocr", "ernie4-5.cpp:108", Pairs::Sections),
    rope("mimo2", "mimo2.cpp:159", Pairs::Neox).windows(listed(Base::Own)),
    rope("step35", "step35.cpp:247", Pairs::Neox).windows(listed(Base::Own)).half_of_full(),
    rope("spark2_5", "spark2-5.cpp:83", Pairs::Neox).windows(listed(Base::Full).keep()),
    rope("llama-embed", "llama.cpp:146", Pairs::Norm),
    rope("maincoder", "maincoder.cpp:80", Pairs::Norm),
    row("kimi-linear", "kimi-linear.cpp:169", Carrier::None(NOPE)),
    row("kimi-k3", "kimi-k3.cpp:169", Carrier::None(NOPE)),
    row("glm5-next", "glm5-next.cpp:925", Carrier::None(NOPE)),
    rope("talkie", "talkie.cpp:76", Pairs::Neox),
    rope("mellum", "mellum.cpp:126", Pairs::Neox).windows(every(4, Base::Fixed).optional()),
    rope("nanbeige", "nanbeige.cpp:118", Pairs::Norm),
    rope("qwen3tts", "qwen3vl.cpp:102", Pairs::InTurn),
    rope("pockettts", "pockettts.cpp:77", Pairs::Norm),
];
