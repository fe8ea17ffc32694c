//! Models without RoPE: what takes position in instead, and the sizes that its spec needs.

use serde_json::{Map, Value};

use super::super::keys::{Keys, wrong};
use super::super::positions::{Carrier, LogitBias, Read, Sizes};
use super::super::{Layer, ModelRope};
use super::Reader;
use super::families::{Form, class};
use super::others::{Other, RECURRENT};
use crate::Result;
use crate::bias::Distances;
use crate::rotate::QueryScale;

/// The kind of each layer, the kinds, and what each adds to its logits.
type Kinds = (Vec<usize>, Vec<Layer>, Vec<Option<LogitBias>>);

impl Reader<'_> {
    /// What carries position instead of RoPE: what the config names, else what its class has.
    pub(super) fn without_rope(&self, count: Option<usize>) -> Result<Option<Carrier>> {
        let config = &self.config;
        let named = self.named()?;
        // A class that rotates whatever such a flag says does not ask for it, and is told so.
        for key in ["alibi", "use_alibi"].into_iter().filter(|_| self.family.alibi || !self.rotates) {
            if config.flag(key)? == Some(true) {
                return Ok(Some(Carrier::Alibi));
            }
        }
        if let Some(named) = named {
            return Ok(named);
        }
        if let Some(other) = self.other {
            return self.class_carrier(other).map(Some);
        }
        Ok(match &self.family.form {
            Form::If { otherwise: Some(text), .. } => Some(Carrier::Nothing(text)),
            Form::If { .. } => Some(Carrier::Learned(0)),
            Form::MemRope if !config.flag("use_mem_rope")?.unwrap_or(false) => Some(Carrier::Nothing(RECURRENT)),
            Form::Clvp if config.flag("use_rotary_embedding")? == Some(false) => {
                Some(Carrier::Nothing("nothing: use_rotary_embedding is false"))
            }
            Form::Baichuan if count == Some(40) => Some(Carrier::Alibi),
            Form::Mpt => {
                let empty = Map::new();
                let attention = Keys::new("attn_config", config.object("attn_config")?.unwrap_or(&empty));
                if attention.flag("rope")? == Some(true) {
                    return wrong("attn_config.rope is true, this crate knows MPT with ALiBi or a learned table only");
                }
                let alibi = attention.flag("alibi")?.unwrap_or(true);
                Some(if alibi { Carrier::Alibi } else { Carrier::Learned(0) })
            }
            _ => None,
        })
    }

    /// What the config's own words name; the outer `None` if it has none, or none that its class reads.
    fn named(&self) -> Result<Option<Option<Carrier>>> {
        let config = &self.config;
        // None in Python, of classes that choose by this key.
        let chosen = matches!(self.other, Some(Other::Wav2Vec2Bert | Other::TransformerXl));
        if chosen && config.map.get("position_embeddings_type") == Some(&Value::Null) {
            return Ok(Some(Some(Carrier::Nothing("nothing: position_embeddings_type is null"))));
        }
        let keys =
            ["position_embedding_type", "position_embeddings_type", "position_encoding_type", "pos_embedding_type"];
        for key in keys {
            let Some(value) = config.text(key)? else { continue };
            let rope = || match &self.family.form {
                Form::If { values, .. } if !values.contains(&value) => None,
                _ if self.rotates => Some(None),
                _ => None,
            };
            let relative = |queries, keys| {
                Some(Carrier::Relative(vec![Some(LogitBias::Relative { queries, keys, states: None })]))
            };
            let positions = || match config
                .count("max_position_embeddings")?
                .or(class(self.model_type).map(|class| class.positions))
            {
                Some(positions) if positions > 0 => Ok(positions),
                _ => wrong(format!("max_position_embeddings is missing, {key} {value:?} needs it")),
            };
            return Ok(match value.to_ascii_lowercase().as_str() {
                // A remark of classes that rotate whatever it says (ModernBERT's file has it).
                "absolute" | "learned" | "learned_absolute" if self.reads_names() => match self.other {
                    Some(other @ (Other::Learned(_) | Other::LearnedKept | Other::LearnedMasked)) => {
                        Some(other.carrier())
                    }
                    _ => Some(Some(Carrier::Learned(0))),
                },
                "absolute" | "learned" | "learned_absolute" => None,
                "alibi" if self.reads_names() || self.family.alibi => Some(Some(Carrier::Alibi)),
                "rope" | "rotary" | "rope_interleaved" if rope().is_some() => rope(),
                "relative_key" | "relative_key_query" if self.other == Some(Other::Wav2Vec2Bert) => None,
                "relative_key" => Some(relative(Some(Distances::bert(positions()?)), None)),
                "relative_key_query" => {
                    let index = Distances::bert(positions()?);
                    Some(relative(Some(index.clone()), Some(index)))
                }
                "relative" => Some(Other::TransformerXl.carrier()),
                "nope" | "none" => Some(Some(match &self.family.form {
                    Form::If { otherwise: Some(text), .. } => Carrier::Nothing(text),
                    _ => Carrier::Nothing("nothing: the config says so"),
                })),
                _ => {
                    return wrong(format!(
                        "{key} is {value:?}, which this crate does not know for model_type {:?}",
                        self.model_type
                    ));
                }
            });
        }
        Ok(None)
    }

    /// Whether the class chooses by the name in its config.
    fn reads_names(&self) -> bool {
        !self.rotates || matches!(self.family.form, Form::If { .. })
    }

    fn class_carrier(&self, other: Other) -> Result<Carrier> {
        if let Some(carrier) = other.carrier() {
            return Ok(carrier);
        }
        let config = &self.config;
        let count = |key: &str, most: usize| Ok::<_, crate::Error>(config.count(key)?.unwrap_or(most));
        let one = |queries, keys| Carrier::Relative(vec![Some(LogitBias::Relative { queries, keys, states: None })]);
        Ok(match other {
            Other::SpeechT5 => one(Some(Distances::speecht5(count("encoder_max_relative_position", 160)?)), None),
            Other::Vits => one(Some(Distances::vits(count("window_size", 4)?)), None),
            Other::Wav2Vec2Bert => {
                let (left, right) =
                    (count("left_max_position_embeddings", 64)?, count("right_max_position_embeddings", 8)?);
                one(Some(Distances::shaw(left, right)), None)
            }
            Other::Deberta if config.flag("relative_attention")? != Some(true) => Carrier::Learned(0),
            Other::Deberta if config.flag("position_biased_input")?.unwrap_or(true) => {
                return wrong("position_biased_input is true beside relative_attention, this crate knows one of them");
            }
            Other::Deberta => {
                let positions = count("max_position_embeddings", 512)?;
                let most = config.number("max_relative_positions")?.filter(|&most| most >= 1.0);
                let most = most.map_or(positions, |most| most as usize);
                let buckets = config.number("position_buckets")?.filter(|&buckets| buckets >= 1.0);
                let index = match buckets {
                    Some(buckets) => Distances::deberta(buckets as usize, most)?,
                    None => Distances::deberta_v1(most),
                };
                // A list, or words with bars between.
                let kinds = match config.get("pos_att_type") {
                    Some(Value::String(text)) => text.split('|').map(str::to_string).collect(),
                    Some(Value::Array(_)) => config.texts("pos_att_type")?.unwrap_or_default(),
                    _ => Vec::new(),
                };
                let of = |name: &str| kinds.iter().any(|kind| kind.trim() == name).then(|| index.clone());
                one(of("c2p"), of("p2c"))
            }
            Other::Inkling => Carrier::Relative(Vec::new()),
            _ => Carrier::Nothing(RECURRENT),
        })
    }

    /// A model without RoPE: its layers, and the sizes that its specs need.
    pub(super) fn carried(&self, carrier: Carrier, count: Option<usize>, context: Option<u64>) -> Result<Read> {
        let config = &self.config;
        let own = class(self.model_type);
        let first = |keys: &[&str]| -> Result<Option<usize>> {
            for key in keys {
                if let Some(count) = config.count(key)? {
                    return Ok(Some(count));
                }
            }
            Ok(None)
        };
        let of_class = |size: usize| (size > 0).then_some(size);
        let sizes = Sizes {
            hidden: first(&["hidden_size", "n_embd", "n_embed", "d_model", "embedding_size", "dim"])?
                .or(own.and_then(|class| of_class(class.hidden))),
            heads: first(&["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"])?
                .or(own.and_then(|class| of_class(class.heads))),
            rows: first(&["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"])?
                .or(own.and_then(|class| of_class(class.positions))),
            padding: config.number("pad_token_id")?.map(|id| id as i64),
            max_bias: match config.object("attn_config")? {
                Some(map) => Keys::new("attn_config", map).number("alibi_bias_max")?,
                None => None,
            },
            buckets: config.count("relative_attention_num_buckets")?,
            max_distance: config.count("relative_attention_max_distance")?,
        };
        let head = self.head().unwrap_or(0);
        let mut notes = vec![format!("position comes from {}", carrier.text())];
        let none = |label: &str| Layer { label: label.into(), ..Layer::none("", head) };
        let name = self.name.to_string();
        if self.other == Some(Other::Inkling) && carrier == Carrier::Relative(Vec::new()) {
            let (layers, kinds, biases) = self.inkling(count, &none)?;
            let rope = ModelRope::new(name, context, kinds, layers, notes)?;
            return Ok(Read { rope, carrier: Carrier::Relative(biases), sizes });
        }
        let kinds = vec![none("every layer")];
        notes.dedup();
        let rope = ModelRope::new(name, context, kinds, vec![0; count.unwrap_or(0)], notes)?;
        Ok(Read { rope, carrier, sizes })
    }

    /// Inkling: states of `d_rel` channels meet a table of `rel_extent` distances, or of the window's.
    fn inkling(&self, count: Option<usize>, none: &dyn Fn(&str) -> Layer) -> Result<Kinds> {
        let config = &self.config;
        let second = self.model_type.starts_with("inkling2");
        let window = config.count("sliding_window_size")?.or(config.count("sliding_window")?);
        let window = window.unwrap_or(if second { 1024 } else { 512 });
        let extent = config.count("rel_extent")?.unwrap_or(1024);
        let width = config.count("d_rel")?.unwrap_or(16);
        let floor = match config.number("log_scaling_n_floor")? {
            None if self.model_type.starts_with("inkling2_loop") => Some(8192.0),
            None if second => Some(128_000.0),
            floor => floor,
        };
        let scale = config.number("log_scaling_alpha")?.unwrap_or(0.1);
        let Some(count) = count else {
            return wrong("num_hidden_layers is missing, a model whose layers differ needs it");
        };
        let sliding: Vec<bool> = match (config.texts("layer_types")?, config.counts("local_layer_ids")?) {
            (Some(types), _) => types.iter().map(|kind| kind.contains("sliding")).collect(),
            (None, Some(list)) => (0..count).map(|layer| list.contains(&layer)).collect(),
            (None, None) => (1..=count).map(|layer| !layer.is_multiple_of(6)).collect(),
        };
        if sliding.len() != count {
            return wrong(format!("layer_types holds {} layers, num_hidden_layers is {count}", sliding.len()));
        }
        let bias =
            |extent| LogitBias::Relative { queries: Some(Distances::inkling(extent)), keys: None, states: Some(width) };
        let mut full = none("full layers");
        if let Some(floor) = floor {
            full.query_scale = QueryScale::Inkling { scale, floor };
        }
        let kinds = vec![full, none("layers with a window")];
        let layers = sliding.into_iter().map(usize::from).collect();
        Ok((layers, kinds, vec![Some(bias(extent)), Some(bias(window))]))
    }
}
