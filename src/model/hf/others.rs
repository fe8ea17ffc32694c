//! What carries position in models without RoPE, by `model_type`.
//!
//! Read from transformers 5.24.0, and from 4.57 for classes that version 5 dropped.

use super::super::positions::Carrier;
use crate::Pairing;
use crate::embed::{Odd, Wave};

/// What a class has where its config is silent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Other {
    Nothing(&'static str),
    /// a learned table whose first position reads this row
    Learned(i64),
    /// a learned table, rows counted from behind the padding id on
    LearnedKept,
    /// OPT's: tokens that are no padding are counted, by the mask
    LearnedMasked,
    /// fairseq's sinusoids
    SinusoidKept,
    Sinusoid {
        pairing: Pairing,
        first: Wave,
        odd: Odd,
        shift: bool,
    },
    /// ALiBi, where nothing else is said
    Alibi,
    T5 {
        encoder: bool,
        decoder: bool,
    },
    /// DeBERTa: products of queries and keys with a table of log buckets, or of clamped distances
    Deberta,
    Inkling,
    /// Transformer-XL's products, whose table depends on the tokens of a call
    TransformerXl,
    /// SpeechT5: Shaw's table up to `encoder_max_relative_position`
    SpeechT5,
    /// VITS: Shaw's table within `window_size`
    Vits,
    /// Wav2Vec2-BERT and SeamlessM4T v2: Shaw's table from `left_max_position_embeddings` to `right_max_position_embeddings`
    Wav2Vec2Bert,
    /// Swin, SAM and others: a table by the difference of two places of a window or a grid
    Windows,
}

pub(super) const RECURRENT: &str = "nothing: order comes from the recurrent layers";

const fn sinusoid(pairing: Pairing, first: Wave, odd: Odd, shift: bool) -> Other {
    Other::Sinusoid { pairing, first, odd, shift }
}

impl Other {
    /// What takes position in, as far as the type alone decides.
    pub fn carrier(self) -> Option<Carrier> {
        Some(match self {
            Self::Nothing(text) => Carrier::Nothing(text),
            Self::Learned(first) => Carrier::Learned(first),
            Self::LearnedKept => Carrier::LearnedKept,
            Self::LearnedMasked => Carrier::LearnedMasked,
            Self::SinusoidKept => Carrier::SinusoidKept,
            Self::Sinusoid { pairing, first, odd, shift } => Carrier::Sinusoid { pairing, first, odd, shift },
            Self::Alibi => Carrier::Alibi,
            Self::T5 { encoder, decoder } => Carrier::T5 { encoder, decoder },
            Self::TransformerXl => Carrier::Open(
                "products with a table of relative positions, one row for each distance of the call: Distances::transformer_xl, \
                 ::xlnet or ::conformer",
            ),
            Self::Windows => Carrier::Open(
                "tables by the difference of two places of a window: Window, decomposed_axis or Swin2Bias",
            ),
            Self::Deberta | Self::Inkling | Self::SpeechT5 | Self::Vits | Self::Wav2Vec2Bert => return None,
        })
    }
}

/// The class's answer; `None` for types that rotate or are not known.
pub(super) fn other(model_type: &str) -> Option<Other> {
    OTHERS.iter().find(|(names, _)| names.contains(&model_type)).map(|&(_, other)| other)
}

pub(super) fn all() -> impl Iterator<Item = (&'static str, Other)> {
    OTHERS.iter().flat_map(|&(names, other)| names.iter().map(move |&name| (name, other)))
}

#[rustfmt::skip]
static OTHERS: &[(&[&str], Other)] = &[
    (&["bloom", "btlm", "gpt_refact", "jais"], Other::Alibi),
    (&["gpt2", "imagegpt", "openai-gpt", "gpt_neo", "gpt_bigcode", "git", "bert", "albert", "electra", "distilbert", "mobilebert",
       "convbert", "squeezebert", "tapas", "layoutlm", "visual_bert", "bert-generation", "big_bird", "rembert", "flava_text_model",
       "clip_text_model", "siglip_text_model", "siglip2_text_model", "chinese_clip_text_model", "align_text_model", "altclip_text_model",
       "clap_text_model", "owlvit_text_model", "groupvit_text_model", "blip_text_model", "blip_2_qformer", "x_clip_text_model",
       "decision_transformer", "roc_bert", "ernie"], Other::Learned(0)),
    (&["nystromformer", "trocr", "bart", "mbart", "plbart", "mvp", "biogpt"], Other::Learned(2)),
    (&["opt"], Other::LearnedMasked),
    (&["blenderbot", "blenderbot-small", "led"], Other::Learned(0)),
    (&["roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "longformer", "ibert", "data2vec-text",
       "luke", "markuplm"], Other::LearnedKept),
    (&["m2m_100", "xglm", "speech_to_text", "nllb-moe"], Other::SinusoidKept),
    (&["marian", "pegasus", "autoformer", "informer"], sinusoid(Pairing::Half, Wave::Sine, Odd::Longer, false)),
    (&["ctrl"], sinusoid(Pairing::Half, Wave::Sine, Odd::Refuse, false)),
    (&["musicgen_decoder", "musicgen_melody_decoder"], sinusoid(Pairing::Half, Wave::Cosine, Odd::Zero, true)),
    (&["t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano"], Other::T5 { encoder: true, decoder: true }),
    (&["pix2struct_text_model"], Other::T5 { encoder: false, decoder: true }),
    (&["deberta", "deberta-v2", "sew-d"], Other::Deberta),
    (&["inkling", "inkling_text", "inkling_mm_model", "inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"], Other::Inkling),
    (&["xlnet", "transfo-xl", "funnel", "parakeet_encoder", "fastspeech2_conformer", "wav2vec2-conformer", "seamless_m4t", "seamless_m4t_conformer", "nemotron_asr_streaming_encoder"],
     Other::TransformerXl),
    (&["speecht5"], Other::SpeechT5),
    (&["vits"], Other::Vits),
    (&["wav2vec2-bert", "seamless_m4t_v2"], Other::Wav2Vec2Bert),
    (&["swin", "donut-swin", "maskformer-swin", "swinv2", "swin2sr", "beit", "data2vec-vision", "levit", "maxvit", "sam_vision_model", "sam_hq_vision_model",
       "vitdet", "seggpt", "clap_audio_model"], Other::Windows),
    (&["jamba", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "nemotron_h", "kimi_linear", "zamba"], Other::Nothing(RECURRENT)),
    (&["glm5_next", "glm5_next_text", "kimi_k3", "kimi_k3_text"],
     Other::Nothing("nothing: latent attention without positions beside recurrent layers")),
];
