//! What a model's code fixes and its config does not say, by `model_type`.
//!
//! Read from transformers 5.24.0 (configuration and modelling files of each type) and, where marked, from the code that the
//! model's authors publish beside the weights. `tools/golden/rope_models.py` runs those classes; what they make of minimal
//! configs is compared with this table.

use super::classes::CLASSES;
use super::others::RECURRENT;
use crate::Pairing;
use crate::rotate::Axes;

/// Conventions of the model types that share them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub pairing: Pairing,
    /// pairs turn by minus the angle
    pub backwards: bool,
    /// theta where the config has none
    pub theta: f64,
    /// the share of the head that is rotated, where the config has none
    pub share: f64,
    /// where theta stands
    pub theta_keys: &'static [&'static str],
    /// the object that theta stands in
    pub theta_in: Option<&'static str>,
    /// where the share stands, beside `partial_rotary_factor`
    pub share_key: Option<&'static str>,
    /// keys about RoPE that change nothing
    pub silent: &'static [&'static str],
    /// whether the class has ALiBi where a flag says so
    pub alibi: bool,
    /// whether the class reads a share of the head
    pub partial: bool,
    /// axes of position where the config is silent, for forms that do not say
    pub axes: Option<ClassAxes>,
    /// whether the class scales where the config is silent, so that the config must speak
    pub must_say: bool,
    pub form: Form,
}

/// How layers differ, and where their numbers stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// All layers that attend are alike.
    Plain,
    /// Latent attention: the rotary part of `qk_rope_head_dim` channels stands alone; the scale of logits has YaRN's mscale.
    Latent,
    /// Latent attention of DeepSeek-V4: the last channels of the head; layers with compressed keys have a base and a scaling
    /// of their own.
    Compressed,
    /// Layers with a window have the base under a key of their own; the scaling belongs to the others, or to all.
    Local { key: &'static str, theta: f64, scaled: bool, pattern: Pattern },
    /// Some layers have no RoPE: `no_rope_layers` holds 1 where a layer has it, else every n-th has none.
    Skipping { latent: bool, temperature: bool },
    /// Layers that see everything have no RoPE, where there are others.
    WindowsOnly(Pattern),
    /// Layers without attention between layers with it.
    Hybrid(Pattern),
    /// `layer_rope_theta` holds the base of each layer, 0 for none; absent, all rotate, or all but each n-th from the last.
    ThetaList { none: Option<usize> },
    /// `rope_scaling_layers` holds the layers that are scaled.
    ScalingList,
    /// ChatGLM: half of the head, base 10000 * `rope_ratio`.
    Ratio,
    /// Qwen-1: NTK by steps of the length with `use_dynamic_ntk`. (authors' code)
    Stepped,
    /// Several axes of position, as the class has them where the config is silent.
    Axes(ClassAxes),
    /// Several axes, and layers without attention.
    HybridAxes(ClassAxes, Pattern),
    /// Rows and columns of a grid, and steps of time.
    Grid(Pairs),
    /// RoPE where `position_embedding_type` is one of these; absent, what the text says, or else a learned table.
    If { values: &'static [&'static str], otherwise: Option<&'static str> },
    /// Zamba 2: RoPE in `hybrid` layers if `use_mem_rope` is true.
    MemRope,
    /// Mllama: none in the layers of `cross_attention_layers`.
    Cross,
    /// Step 3.5: `rope_theta` and `partial_rotary_factors` may be lists over the layers; the scaling belongs to full layers.
    Lists,
    /// No rotation by one angle a pair; the text says what it is.
    Refused(&'static str),
    /// ESMFold2's atoms: three coordinates and the residue's number, each with pairs and a base of its own.
    Atoms,
    /// MusicFlamingo's sound: its seconds times the window, and times the frame.
    Seconds,
    /// CLVP: the first channels of each head, a number that follows from the projection's size; none if a flag says so.
    Clvp,
    /// MPT: ALiBi or a learned table in `attn_config`.
    Mpt,
    /// Baichuan: RoPE with 32 layers, ALiBi with 40. (authors' code)
    Baichuan,
}

/// How the axes of a grid share the pairs of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pairs {
    /// each a ladder over half of the pairs
    Ladders,
    /// the same by the centres of patches, in units of 2 pi
    Centers,
    /// time, rows and columns, each a ladder over a third of the pairs, what does not divide is not rotated
    Thirds,
    /// in turn, each with a ladder of its own
    Alternating,
    /// in turn over all heads at once (EfficientLoFTR)
    AlternatingWhole,
    /// the ladder of all pairs dealt to them
    Dealt,
    /// each with a half of the channels
    Blocks,
    /// each a ladder over half of the pairs of a memory's attention (SAM 2)
    Memory,
}

/// Axes that a class has where the config is silent.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClassAxes {
    Sections(&'static [usize]),
    Interleaved(&'static [usize]),
    HeightWidthFirst([usize; 3]),
}

impl ClassAxes {
    pub fn axes(self) -> Axes {
        match self {
            Self::Sections(sizes) => Axes::Sections(sizes.to_vec()),
            Self::Interleaved(sizes) => Axes::Interleaved(sizes.to_vec()),
            Self::HeightWidthFirst(sizes) => Axes::HeightWidthFirst(sizes),
        }
    }
}

/// Which layers are of the second kind where the config has no `layer_types`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pattern {
    /// none is known: the config must say
    Listed,
    /// each `n`-th layer is full, counted from the first `n - 1`; the key may change `n`
    Last { key: &'static str, every: usize },
    /// layers 0, n, 2n, ... are full
    First { key: &'static str, every: usize },
    /// the first layer and each n-th are full
    FirstAndLast { every: usize },
}

impl Family {
    pub const fn new(pairing: Pairing, theta: f64) -> Self {
        Self {
            pairing,
            backwards: false,
            theta,
            share: 1.0,
            theta_keys: &["rope_theta"],
            theta_in: None,
            share_key: None,
            silent: &[],
            alibi: false,
            partial: false,
            axes: None,
            must_say: false,
            form: Form::Plain,
        }
    }

    /// The share that the class has where the config is silent.
    const fn share(self, share: f64) -> Self {
        Self { share, partial: true, ..self }
    }

    const fn partial(self) -> Self {
        self.share(1.0)
    }

    const fn axes(self, axes: ClassAxes) -> Self {
        Self { axes: Some(axes), ..self }
    }

    const fn theta_keys(self, theta_keys: &'static [&'static str]) -> Self {
        Self { theta_keys, ..self }
    }

    const fn share_key(self, key: &'static str) -> Self {
        Self { share_key: Some(key), partial: true, ..self }
    }

    const fn silent(self, silent: &'static [&'static str]) -> Self {
        Self { silent, ..self }
    }

    const fn must_say(self) -> Self {
        Self { must_say: true, ..self }
    }

    const fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }
}

/// Pairs in halves.
const fn half(theta: f64) -> Family {
    Family::new(Pairing::Half, theta)
}

const fn interleaved(theta: f64) -> Family {
    Family::new(Pairing::Interleaved, theta)
}

const fn latent(theta: f64) -> Family {
    interleaved(theta).form(Form::Latent)
}

const fn every(key: &'static str, every: usize) -> Pattern {
    Pattern::Last { key, every }
}

/// Windows whose base stands under `key`; the scaling belongs to the other layers.
const fn local(key: &'static str, theta: f64, pattern: Pattern) -> Form {
    Form::Local { key, theta, scaled: false, pattern }
}

const WINDOWS: &str = "sliding_window_pattern";

/// The conventions of a model type; `None` where they are not known.
pub(super) fn family(model_type: &str) -> Option<Family> {
    FAMILIES.iter().find(|(names, _)| names.contains(&model_type)).map(|&(_, family)| family)
}

pub(super) fn all() -> impl Iterator<Item = (&'static str, Family)> {
    FAMILIES.iter().flat_map(|&(names, family)| names.iter().map(move |&name| (name, family)))
}

/// Conformers whose `position_embeddings_type` chooses RoPE; absent, the class has what `others.rs` says.
const SPEECH: &[&str] =
    &["wav2vec2-bert", "wav2vec2-conformer", "seamless_m4t", "seamless_m4t_conformer", "seamless_m4t_v2"];

/// Types whose full layers have 512 channels a head where `global_head_dim` is absent, and whose last layer is full whatever the
/// config says.
pub(super) const GEMMA4: &[&str] = &["gemma4_text", "gemma4_unified_text", "diffusion_gemma_text"];

/// Channels of a head where the config has none and the class does not divide the hidden size by the heads.
pub(super) fn head(model_type: &str) -> Option<usize> {
    let own = HEADS.iter().find(|(_, names)| names.contains(&model_type)).map(|&(head, _)| head);
    own.or_else(|| class(model_type).map(|class| class.head).filter(|&head| head > 0))
}

/// What a class has where the config is silent; 0 where it has nothing.
#[derive(Clone, Copy)]
pub(super) struct Class {
    pub hidden: usize,
    pub heads: usize,
    pub head: usize,
    pub positions: usize,
}

pub(super) fn class(model_type: &str) -> Option<Class> {
    let at = CLASSES.binary_search_by_key(&model_type, |&(name, ..)| name).ok()?;
    let (_, hidden, heads, head, positions) = CLASSES[at];
    Some(Class { hidden, heads, head, positions })
}

/// Beside [`CLASSES`]: names of whole models, and classes that write the size down in each layer's entry.
#[rustfmt::skip]
static HEADS: &[(usize, &[&str])] = &[
    (128, &["qwen3_vl", "llama4", "paddleocr_vl"]),
    (256, &["gemma3", "gemma4_text", "gemma4_unified_text", "diffusion_gemma_text", "t5gemma2_encoder", "qwen3_5", "qwen3_5_moe"]),
];

#[rustfmt::skip]
static FAMILIES: &[(&[&str], Family)] = &[
    // One RoPE in halves over the head.
    (&["llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "granite", "granitemoe",
       "granitemoeshared", "starcoder2", "olmo", "olmo2", "olmoe", "arcee", "seed_oss", "jetmoe",
       "diffllama", "dots1", "ministral", "chameleon", "jais2", "hrm_text", "eurobert", "hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl", "hunyuan_vl_text",
       "vaultgemma", "idefics", "doge", "moshi", "aria_text", "deepseek_ocr2_text", "unlimited_ocr_text", "granite_docling_text",
       "hyperclovax", "esmc", "dia_encoder", "dia_decoder", "voxtral_realtime_text", "kyutai_speech_to_text", "mimi",
       "nemotron-nas", "llava", "granite4_vision_text", "neucodec", "xcodec2", "timesfm2_5", "gradium_phonon_tts", "pocket_tts",
       "pocket_tts_audio_tokenizer", "lasr_encoder", "voxtral_realtime_encoder", "minimax_m1",
       "qwen3_omni_moe_talker_text", "qwen3_omni_moe_talker_code_predictor", "falcon_h1", "t5_gemma_module"], half(10_000.0)),
    // (authors' code)
    (&["mimo", "internlm", "internlm2", "xverse", "orion", "minicpm", "deepseek", "exaone", "Yi", "aquila"], half(10_000.0)),
    (&["mixtral", "phimoe", "qwen3_omni_moe_text", "emu3_text_model"], half(1e6)),
    (&["solar_open"], half(1e6).partial()),
    (&["phi3", "phi3_v", "phi4_multimodal"], half(10_000.0).partial()),
    (&["gpt_oss"], half(150_000.0).must_say()),
    (&["openai_privacy_filter"], interleaved(150_000.0).must_say()),
    (&["cwm"], half(1e6).must_say()),
    (&["apertus", "apertus1p5_text"], half(12e6).must_say()),
    (&["ministral3"], half(10_000.0).must_say()),
    (&["bitnet", "csm", "csm_depth_decoder_model", "flex_olmo", "evolla", "muse_glimmer_assistant"], half(500_000.0)),
    (&["mllama_text_model"], half(500_000.0).form(Form::Cross)),
    (&["higgs_audio_v2"], half(500_000.0).must_say()),
    (&["pe_audio_encoder", "pe_audio_video_encoder", "pe_video_encoder"], interleaved(20_000.0)),
    (&["hy_v3"], half(11_158_840.0)),
    (&["nomic_bert"], half(1_000.0).partial().theta_keys(&["rope_theta", "rotary_emb_base"])),
    (&["jina_embeddings_v3"], half(20_000.0)),
    (&["gte"], half(160_000.0)),
    (&["minimax_m2", "minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"], half(5e6).partial()),
    (&["dbrx"], Family { theta_in: Some("attn_config"), ..half(10_000.0) }),
    (&["nanochat"], Family { backwards: true, ..half(10_000.0) }),
    (&["openelm"], half(10_000.0).theta_keys(&["rope_freq_constant"]).silent(&["rope_max_length"])),                // (authors' code)
    (&["phi3small"], half(1e6).theta_keys(&["rope_embedding_base"])),                                             // (authors' code)
    (&["qwen"], half(10_000.0).theta_keys(&["rotary_emb_base"]).share_key("rotary_pct").form(Form::Stepped)),
    (&["esm"], half(10_000.0).form(Form::If { values: &["rotary", "rope"], otherwise: None })),
    // A share of the head.
    (&["phi", "persimmon", "nemotron", "glm4_moe", "glmasr_encoder", "dots3_note_audio_encoder", "nemotron3_5_transcribe_asr_audio"],
     half(10_000.0).share(0.5)),
    (&["nemotron3_diarization_audio"], half(10_000.0).partial()),
    (&["stablelm"], half(10_000.0).share(0.25)),
    (&["stablelm_epoch"], half(10_000.0).share(0.25).share_key("rope_pct")),                                   // (authors' code)
    (&["gpt_neox"], half(10_000.0).share(0.25).theta_keys(&["rotary_emb_base"]).share_key("rotary_pct")),
    (&["gpt_neox_japanese"], half(10_000.0).theta_keys(&["rotary_emb_base"]).share_key("rotary_pct")),
    // Interleaved pairs.
    (&["gptj", "codegen"], interleaved(10_000.0).silent(&["rotary"])),
    (&["glm", "glm4"], interleaved(10_000.0).share(0.5)),
    (&["chatglm"], interleaved(10_000.0).silent(&["original_rope"]).form(Form::Ratio)),
    (&["cohere", "ernie4_5", "ernie4_5_moe", "blt_local_encoder", "blt_local_decoder", "blt_global_transformer"], interleaved(500_000.0)),
    (&["blt_patcher", "roformer"], interleaved(10_000.0)),
    (&["helium"], interleaved(100_000.0)),
    (&["moonshine"], interleaved(10_000.0).share(0.9)),
    (&["moonshine_streaming"], interleaved(10_000.0).share(0.8).must_say()),
    // Latent attention.
    (&["deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite", "glm_moe_dsa", "youtu", "axk1", "axk2"], latent(10_000.0)),
    (&["mistral4"], latent(10_000.0).partial().must_say()),
    (&["dots3_note", "dots3_note_text"], latent(10_000.0).partial().must_say()),
    (&["hy_v4_vl", "hy_v4_vl_text"], latent(10_000.0).axes(ClassAxes::Interleaved(&[24, 20, 20]))),
    (&["longcat_flash"], latent(1e7)),
    (&["bailing_hybrid"], latent(6e6)),
    (&["minicpm3", "hy_v4"], half(10_000.0).form(Form::Latent)),
    (&["deepseek_v4", "deepseek_ref"], interleaved(10_000.0).form(Form::Compressed)),
    // Layers that differ.
    (&["gemma3", "gemma3_text"], half(1e6).form(local("rope_local_base_freq", 10_000.0, every(WINDOWS, 6)))),
    (&["gemma3n_text"], half(1e6).form(local("rope_local_base_freq", 10_000.0, every(WINDOWS, 5)))),
    (GEMMA4,
     half(1e6).must_say().form(local("rope_local_base_freq", 10_000.0, every(WINDOWS, 6)))),
    (&["t5gemma2_text", "t5gemma2_decoder", "t5gemma2_encoder"],
     half(1e6).form(local("rope_local_base_freq", 10_000.0, every(WINDOWS, 6)))),
    (&["modernbert", "modernbert-decoder"],
     half(160_000.0).theta_keys(&["global_rope_theta"]).form(Form::Local {
         key: "local_rope_theta", theta: 10_000.0, scaled: true,
         pattern: Pattern::First { key: "global_attn_every_n_layers", every: 3 },
     })),
    (&["mimo_v2_flash"],
     half(5e6).share(0.334).form(Form::Local {
         key: "swa_rope_theta", theta: 10_000.0, scaled: true, pattern: Pattern::FirstAndLast { every: 6 },
     })),
    (&["olmo3"], half(500_000.0).form(local("rope_theta", 500_000.0, every(WINDOWS, 4)))),
    (&["laguna"], half(500_000.0).share(0.5).must_say().form(local("swa_rope_theta", 10_000.0, Pattern::Listed))),
    (&["mellum"], half(500_000.0).partial().must_say().form(local("swa_rope_theta", 10_000.0, Pattern::Listed))),
    (&["ultrabert", "neomme", "lfm3", "beam", "dory", "embedding_gemma2", "embedding_gemma2_text"],
     half(10_000.0).partial().must_say().form(Form::Hybrid(Pattern::Listed))),
    (&["llama4", "llama4_text"], interleaved(500_000.0).form(Form::Skipping { latent: false, temperature: true })),
    (&["smollm3"], half(2e6).form(Form::Skipping { latent: false, temperature: false })),
    (&["mistral_large4_text"], interleaved(10_000.0).must_say().form(Form::Skipping { latent: true, temperature: false })),
    (&["cohere2"], interleaved(10_000.0).form(Form::WindowsOnly(every(WINDOWS, 4)))),
    (&["cohere2_moe"], interleaved(10_000.0).form(Form::WindowsOnly(Pattern::Listed))),
    (&["zaya"], half(5e6).share(0.5).must_say().form(Form::Hybrid(Pattern::Listed))),
    (&["step3p5", "step3p7"], half(10_000.0).partial().form(Form::Lists)),
    (&["cohere_compass", "cohere_compass_text"],
     half(10_000.0).must_say().axes(ClassAxes::Interleaved(&[24, 20, 20])).form(Form::Hybrid(Pattern::Listed))),
    (&["flint", "kolibri1", "lara_mini"], half(10_000.0).form(Form::WindowsOnly(Pattern::Listed))),
    (&["exaone4", "exaone4_5_text", "exaone_moe"], half(10_000.0).form(Form::WindowsOnly(every(WINDOWS, 4)))),
    (&["afmoe"], half(10_000.0).form(Form::WindowsOnly(every("global_attn_every_n_layers", 4)))),
    (&["muse_glimmer_text"], half(10_000.0).form(Form::ThetaList { none: Some(4) })),
    (&["muse_spark_text"], half(500_000.0).form(Form::ThetaList { none: Some(4) })),
    (&["granite_swa", "granitemoe_swa"], half(10_000.0).form(Form::ThetaList { none: None })),
    (&["molmo2_text"], half(10_000.0).form(Form::ScalingList)),
    // Attention in some layers only.
    (&["qwen3_next"], half(10_000.0).share(0.25).form(Form::Hybrid(every("full_attention_interval", 4)))),
    (&["lfm2", "lfm2_moe", "minimax"], half(1e6).form(Form::Hybrid(Pattern::Listed))),
    (&["olmo_hybrid"], half(10_000.0).form(Form::Hybrid(Pattern::Listed))),
    (&["bamba"], half(10_000.0).share(0.5).silent(&["attn_rotary_emb"]).form(Form::Hybrid(Pattern::Listed))),
    (&["recurrent_gemma"], half(10_000.0).share(0.5).form(Form::Hybrid(Pattern::Listed))),
    (&["zamba2"], half(10_000.0).form(Form::MemRope)),
    (&["granitemoehybrid"],
     half(10_000.0).form(Form::If { values: &["rope"], otherwise: Some(RECURRENT) })),
    // Several axes of position.
    (&["qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen2_5_omni_talker"],
     half(1e6).form(Form::Axes(ClassAxes::Sections(&[16, 24, 24])))),
    (&["paddleocr_vl", "paddleocr_vl_text"], half(500_000.0).form(Form::Axes(ClassAxes::Sections(&[16, 24, 24])))),
    (&["glm4v", "glm4v_text", "glm_ocr_text"], interleaved(10_000.0).partial().form(Form::Axes(ClassAxes::Sections(&[8, 12, 12])))),
    (&["glm_image_text"], half(10_000.0).partial().form(Form::Axes(ClassAxes::Sections(&[8, 12, 12])))),
    (&["glm4v_moe_text"], half(10_000.0).share(0.5).form(Form::Axes(ClassAxes::Sections(&[8, 12, 12])))),
    (&["qwen3_vl", "qwen3_vl_text", "qwen3_vl_moe", "qwen3_vl_moe_text"],
     half(500_000.0).form(Form::Axes(ClassAxes::Interleaved(&[24, 20, 20])))),
    (&["cosmos3_edge_text"], half(1e8).must_say().form(Form::Axes(ClassAxes::Interleaved(&[24, 20, 20])))),
    (&["ernie4_5_vl_moe_text"], interleaved(500_000.0).form(Form::Axes(ClassAxes::HeightWidthFirst([20, 22, 22])))),
    (&["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
     half(10_000.0).share(0.25).form(Form::HybridAxes(ClassAxes::Interleaved(&[11, 11, 10]), every("full_attention_interval", 4)))),
    (&["qwen4_exp", "qwen4_exp_text"],
     half(10_000.0).partial().form(Form::HybridAxes(ClassAxes::Interleaved(&[11, 11, 10]), every("full_attention_interval", 4)))),
    // Vision towers.
    (&["qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision",
       "qwen3_5_moe_vision", "glm4v_vision", "glm4v_moe_vision", "glm_ocr_vision", "paddleocr_vl_vision", "qwen2_5_omni_vision_encoder",
       "qwen3_omni_moe_vision_encoder", "ernie4_5_vl_moe_vision", "video_llama_3_vision", "exaone4_5_vision", "qwen4_exp_vision",
       "cohere_compass_vision", "glm5_next_vision", "dots3_note_vision_encoder", "mlcd_vision_model", "muse_glimmer_vision", "muse_spark_vision"], half(10_000.0).form(Form::Grid(Pairs::Ladders))),
    (&["lfm3_vl_vision"], half(1e6).form(Form::Grid(Pairs::Ladders))),
    (&["sam3_vit_model"], interleaved(10_000.0).form(Form::Grid(Pairs::Ladders))),
    (&["vjepa2"], interleaved(10_000.0).form(Form::Refused(
        "the two channels of a pair turn by different angles there, which is no rotation"))),
    (&["step3p5_vision"], half(10_000.0).form(Form::Grid(Pairs::Ladders))),
    (&["llama4_vision_model", "inkling2_vision"], interleaved(10_000.0).form(Form::Grid(Pairs::Ladders))),
    (&["dinov3_vit", "eomt_dinov3", "sapiens2"], half(100.0).form(Form::Grid(Pairs::Centers))),
    (&["kimi_k25_vision"], half(10_000.0).form(Form::Grid(Pairs::Alternating))),
    (&["minimax_m3_vl_vision"], half(10_000.0).form(Form::Grid(Pairs::Thirds))),
    (&["efficientloftr"], interleaved(10_000.0).form(Form::Grid(Pairs::AlternatingWhole))),
    (&["sam2_video", "sam3_tracker_video", "edgetam_video"],
     interleaved(10_000.0).theta_keys(&["rope_theta", "memory_attention_rope_theta"])
         .silent(&["memory_attention_rope_feat_sizes", "memory_attention_rope_k_sizes", "memory_attention_rope_dropout"])
         .form(Form::Grid(Pairs::Memory))),
    (&["pixtral"], half(10_000.0).form(Form::Grid(Pairs::Dealt))),
    (&["gemma4_vision"], half(100.0).form(Form::Grid(Pairs::Blocks))),
    // Speech.
    (SPEECH, half(10_000.0).theta_keys(&["rotary_embedding_base"]).form(Form::If { values: &["rotary"], otherwise: None })),
    (&["musicflamingo"], interleaved(1200.0).share(0.2).form(Form::Seconds)),
    (&["clvp_encoder"], half(10_000.0).form(Form::Clvp)),
    (&["qwen2_5_omni_dit"], interleaved(10_000.0)),
    (&["deepseek_ocr2_encoder", "deepseek_ocr2_vision"], half(10_000.0)),
    // Atoms.
    (&["esmfold2_atom_encoder"], half(20.0).theta_keys(&["spatial_rope_base_frequency"]).form(Form::Atoms)),
    // Other encodings.
    (&["falcon", "RefinedWeb", "RefinedWebModel"], Family { alibi: true, ..half(10_000.0) }),
    (&["mpt"], half(10_000.0).form(Form::Mpt)),
    (&["baichuan"], half(10_000.0).form(Form::Baichuan)),
];
