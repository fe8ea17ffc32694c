//! Encoders of images and sound: how patches are counted, sizes of heads, and what an engine must know beside the specs.

use super::super::keys::wrong;
use super::Reader;
use super::families::{Form, Pairs, class};
use crate::Result;
use crate::position::{GridAxis, GridCoordinate, GridExtent, GridPositions};

/// Fraction bits of a patch's centre: its rounding and that of the phase are then as large, 2^-33 turns of the first pair.
pub(super) const CENTER_BITS: u32 = 32;

/// Rows and columns of a block of patches.
#[derive(Clone, Copy)]
enum Merge {
    /// patches are in rows
    One,
    /// the config's `spatial_merge_size`; absent, the class has 2
    Config,
}

#[derive(Clone, Copy)]
enum Before {
    Nothing,
    /// a class token
    Class,
    /// a class token and the config's `num_register_tokens`; absent, the class has so many
    Registers(usize),
}

struct Tower {
    axes: &'static [GridAxis],
    coordinate: GridCoordinate,
    merge: Merge,
    before: Before,
    after: usize,
}

const ROWS_FIRST: Tower = Tower {
    axes: &[GridAxis::Row, GridAxis::Column],
    coordinate: GridCoordinate::Index { first: 0 },
    merge: Merge::One,
    before: Before::Nothing,
    after: 0,
};
const COLUMNS_FIRST: Tower = Tower { axes: &[GridAxis::Column, GridAxis::Row], ..ROWS_FIRST };
const FROM_1: GridCoordinate = GridCoordinate::Index { first: 1 };

const fn centers(registers: usize) -> Tower {
    let coordinate = GridCoordinate::Center { extent: GridExtent::Own, bits: CENTER_BITS };
    Tower { coordinate, before: Before::Registers(registers), ..ROWS_FIRST }
}

#[rustfmt::skip]
static TOWERS: &[(&[&str], Tower)] = &[
    (&["qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision",
       "glm4v_vision", "glm4v_moe_vision", "glm_ocr_vision", "qwen2_5_omni_vision_encoder", "qwen3_omni_moe_vision_encoder",
       "ernie4_5_vl_moe_vision", "exaone4_5_vision", "qwen4_exp_vision", "cohere_compass_vision", "glm5_next_vision",
       "dots3_note_vision_encoder", "lfm3_vl_vision"],
     Tower { merge: Merge::Config, ..ROWS_FIRST }),
    // Blocks of Video-LLaMA 3 are the processor's.
    (&["paddleocr_vl_vision", "pixtral", "video_llama_3_vision"], ROWS_FIRST),
    (&["kimi_k25_vision", "step3p5_vision", "gemma4_vision", "sam3_vit_model", "sam2_video", "sam3_tracker_video", "edgetam_video"],
     COLUMNS_FIRST),
    (&["muse_glimmer_vision", "muse_spark_vision"], Tower { coordinate: FROM_1, ..COLUMNS_FIRST }),
    (&["llama4_vision_model"], Tower { coordinate: FROM_1, after: 1, ..COLUMNS_FIRST }),
    (&["inkling2_vision"], Tower { coordinate: FROM_1, before: Before::Class, merge: Merge::Config, ..COLUMNS_FIRST }),
    (&["efficientloftr"], Tower { coordinate: FROM_1, ..ROWS_FIRST }),
    (&["minimax_m3_vl_vision"],
     Tower { axes: &[GridAxis::Time, GridAxis::Row, GridAxis::Column], merge: Merge::Config, ..ROWS_FIRST }),
    (&["dinov3_vit"], centers(0)),
    (&["eomt_dinov3"], centers(4)),
    (&["sapiens2"], centers(8)),
];

const HIDDEN: &str = "the hidden states are rotated, each head's channels, before queries and keys are projected; values come from what is not rotated";

/// What an engine must know beside the specs.
#[rustfmt::skip]
static NOTES: &[(&[&str], &str)] = &[
    (&["video_llama_3_vision"], "patches are in blocks of the processor's merge_size: set GridPositions::merge"),
    (&["mlcd_vision_model"], "the class token has learned angles of its own, the patches their rows and columns from 0"),
    (&["wav2vec2-bert", "wav2vec2-conformer"], HIDDEN),
    (&["seamless_m4t", "seamless_m4t_conformer", "seamless_m4t_v2"], HIDDEN),
    (&["esmfold2_atom_encoder"],
     "positions are x, y and z of an atom, by posenc::position::fixed with 20 bits, and its ref_space_uid"),
    (&["musicflamingo"], "hidden states of the sound are rotated, before the projector; positions by posenc::position::timed_windows"),
    (&["clvp_encoder"], "values are rotated as queries and keys are"),
    (&["qwen2_5_omni_dit"], "the first head alone is rotated"),
    (&["sam3_vit_model"], "in layers with windows each window is a grid of its own"),
    (&["eomt_dinov3"], "the last num_blocks layers have num_queries more tokens before the patches"),
    (&["efficientloftr"], "queries and keys rotate as one head of hidden_size channels, before they are split into heads"),
    (&["sam2_video", "sam3_tracker_video"],
     "the memory's attention: keys have the positions of the queries' grid once for each frame, object pointers behind them none"),
    (&["edgetam_video"],
     "the memory's attention: keys have a grid of memory_attention_rope_k_sizes behind each frame's other tokens, which have none"),
];

impl Reader<'_> {
    /// What an engine must know beside the specs.
    pub(super) fn beside(&self) -> Option<String> {
        NOTES.iter().find(|(names, _)| names.contains(&self.model_type)).map(|(_, note)| (*note).into())
    }

    /// How the tower counts patches; `None` for types without a grid, and where a token has positions of its own.
    pub(super) fn grid(&self) -> Result<Option<GridPositions>> {
        let tower = TOWERS.iter().find(|(names, _)| names.contains(&self.model_type));
        let Some((_, tower)) = tower else { return Ok(None) };
        let config = &self.config;
        let merge = match tower.merge {
            Merge::One => 1,
            // Inkling's config class has both names.
            Merge::Config => config.count("spatial_merge_size")?.or(config.count("adapter_merge_size")?).unwrap_or(2),
        };
        if merge == 0 {
            return wrong("spatial_merge_size is 0, it must be at least 1");
        }
        let before = match tower.before {
            Before::Nothing => 0,
            Before::Class => 1,
            Before::Registers(count) => 1 + config.count("num_register_tokens")?.unwrap_or(count),
        };
        let (axes, coordinate) = (tower.axes.to_vec(), tower.coordinate);
        Ok(Some(GridPositions { axes, coordinate, merge, before, after: tower.after }))
    }

    /// The head of a tower whose config states it in words of its own.
    pub(super) fn tower_head(&self) -> Result<Option<usize>> {
        let config = &self.config;
        match self.family.form {
            Form::Grid(Pairs::Memory) => {
                let count = |key, default| Ok::<_, crate::Error>(config.count(key)?.unwrap_or(default));
                let hidden = count("memory_attention_hidden_size", 256)?;
                let shares = count("memory_attention_downsample_rate", 1)?
                    .saturating_mul(count("memory_attention_num_attention_heads", 1)?);
                if shares == 0 || hidden % shares != 0 {
                    return wrong(format!(
                        "memory_attention_hidden_size {hidden} does not divide into {shares}, the product of its downsample rate and heads"
                    ));
                }
                Ok(Some(hidden / shares))
            }
            _ if self.model_type.starts_with("seamless_m4t") => {
                let hidden = config.count("hidden_size")?.unwrap_or(1024);
                let heads = config.count("speech_encoder_attention_heads")?.unwrap_or(16);
                if heads == 0 || hidden % heads != 0 {
                    return wrong(format!(
                        "hidden_size {hidden} does not divide into {heads} heads of the speech encoder"
                    ));
                }
                Ok(Some(hidden / heads))
            }
            Form::Grid(Pairs::AlternatingWhole) => Ok(Some(config.count("hidden_size")?.unwrap_or(256))),
            _ => Ok(None),
        }
    }

    /// EfficientLoFTR's `partial_rotary_factor` of a head: 4 of 8 heads, a half of all channels for each axis.
    pub(super) fn check_whole(&self, share: Option<f64>) -> Result<()> {
        let heads = self.config.count("num_attention_heads")?.or(class(self.model_type).map(|class| class.heads));
        let heads = heads.unwrap_or(8);
        let share = share.unwrap_or(4.0);
        if 2.0 * share != heads as f64 {
            return wrong(format!(
                "partial_rotary_factor is {share} of {heads} heads, rows and columns must share all heads equally"
            ));
        }
        Ok(())
    }

    /// SAM 3: positions of a layer that sees the whole image are scaled to the size of a window.
    pub(super) fn global_stretch(&self) -> Result<f64> {
        let config = &self.config;
        // A number, or two of which the first divides columns.
        let size = |key: &str, default: usize| match config.get(key) {
            Some(serde_json::Value::Array(_)) => match config.counts(key)?.as_deref() {
                Some(&[first, _]) => Ok(first),
                _ => wrong(format!("{key} must be a number or two")),
            },
            _ => Ok(config.count(key)?.unwrap_or(default)),
        };
        let (image, patch, window) = (size("image_size", 1008)?, size("patch_size", 14)?, size("window_size", 24)?);
        if patch == 0 || window == 0 || image < patch {
            return wrong(format!(
                "image_size is {image}, patch_size {patch} and window_size {window}: a global layer has no positions"
            ));
        }
        Ok((image / patch) as f64 / window as f64)
    }
}
