//! One kind of layers, built: sizes, base, pairs, axes, and what the scaling says.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use super::super::Layer;
use super::super::keys::{Keys, wrong};
use super::families::{ClassAxes, Form, GEMMA4, Pairs, class, head};
use super::layers::{GLOBAL, Kind};
use super::measured::ATOM_BITS;
use super::scaling::{KNOWN, Parts};
use super::towers::CENTER_BITS;
use super::{Reader, nested, rope_type};
use crate::Pairing;
use crate::Result;
use crate::position::DualChunk;
use crate::rotate::{Axes, QueryScale, Rope, Scaling};

impl Reader<'_> {
    /// Channels of a query's head.
    pub(super) fn head(&self) -> Result<usize> {
        let config = &self.config;
        if let Some(head) = self.tower_head()?.or(self.measured_head()?) {
            return Ok(head);
        }
        // Zamba 2 attends over its input beside the hidden state: kv_channels is half of its head.
        let twice = matches!(self.family.form, Form::MemRope);
        let keys: &[&str] =
            if twice { &["attention_head_dim"] } else { &["head_dim", "kv_channels", "attention_head_dim"] };
        for key in keys {
            if let Some(head) = config.count(key)? {
                return Ok(head);
            }
        }
        if let Some(head) = head(self.model_type).filter(|_| !matches!(self.family.form, Form::Latent)) {
            return Ok(head);
        }
        let first = |keys: [&'static str; 3]| -> Result<Option<(&str, usize)>> {
            for key in keys {
                if let Some(count) = config.count(key)? {
                    return Ok(Some((key, count)));
                }
            }
            Ok(None)
        };
        let because = "a head size that head_dim does not give";
        let class = class(self.model_type);
        let grid = matches!(self.family.form, Form::Grid(_));
        // Where both stand in a vision tower, hidden_size is the language model's.
        let sizes = if grid { ["embed_dim", "hidden_size", "width"] } else { ["hidden_size", "n_embd", "d_model"] };
        let of_class = |size: Option<usize>, key| size.filter(|&size| size > 0).map(|size| (key, size));
        let size = first(sizes)?.or(of_class(class.map(|class| class.hidden), "hidden_size"));
        let Some((size_key, size)) = size else {
            return wrong(format!("hidden_size is missing, {because} needs it"));
        };
        let heads = first(if grid {
            ["num_heads", "num_attention_heads", "heads"]
        } else {
            ["num_attention_heads", "n_head", "n_heads"]
        })?;
        let Some((_, heads)) = heads.or(of_class(class.map(|class| class.heads), "num_attention_heads")) else {
            return wrong(format!("num_attention_heads is missing, {because} needs it"));
        };
        if heads == 0 || size % heads != 0 {
            return wrong(format!("{size_key} {size} does not divide into {heads} heads"));
        }
        Ok(if twice { 2 * size / heads } else { size / heads })
    }

    /// One kind of layers, built.
    pub(super) fn layer(
        &self,
        kind: &Kind,
        merged: &Map<String, Value>,
        context: Option<u64>,
        notes: &mut Vec<String>,
    ) -> Result<Layer> {
        let config = &self.config;
        let empty = Map::new();
        let is_nested = nested(merged);
        let map = if is_nested {
            match merged.get(&kind.entry) {
                Some(Value::Object(map)) => map,
                // An entry that is null is a layer without RoPE.
                Some(Value::Null) => return Ok(Layer::none(&kind.label, self.head()?)),
                Some(value) => {
                    return wrong(format!("rope_parameters.{} is {value}, it must be an object", kind.entry));
                }
                None if !kind.rotates => &empty,
                None => {
                    return wrong(format!("rope_parameters has no entry for the layer type {:?}", kind.entry));
                }
            }
        } else if kind.scaled {
            merged
        } else {
            &empty
        };
        let name = if is_nested {
            format!("rope_parameters.{}", kind.entry)
        } else if config.get("rope_parameters").is_some() {
            "rope_parameters".into()
        } else {
            "rope_scaling".into()
        };
        let map = Keys::new(name, map);

        // A window's base key is always consumed; so are the others' keys, whichever kind comes first.
        let scaling_kind = rope_type(&map, self.model_type)?;
        let theta = self.theta(kind, &map, merged, is_nested)?;
        let (head, rotary, offset, share) = self.sizes(kind, &map, &scaling_kind)?;
        let pairing = self.pairing()?;
        if !kind.rotates {
            let mut layer = Layer::none(&kind.label, head);
            if matches!(self.family.form, Form::Skipping { temperature: true, .. }) && self.temperature()? {
                let scale = config.number("attn_scale")?.unwrap_or(0.1);
                let floor = config.number("floor_scale")?.unwrap_or(8192.0);
                layer.query_scale = QueryScale::Llama4 { scale, floor };
            }
            return Ok(layer);
        }

        let Parts { scaling, rotary, attention_factor, long_attention_factor, logit_scale, query_scale } =
            self.scaling(&map, &scaling_kind, (head, rotary, share), context, notes)?;
        let axes = self.axes(&map, rotary / 2)?;
        let scaling = match scaling {
            scaling if !self.family.backwards => scaling,
            Scaling::None => Scaling::Divisors(vec![-1.0; rotary / 2]),
            _ => {
                return wrong(format!(
                    "rope_type is {scaling_kind:?}, model_type {:?} has default alone",
                    self.model_type
                ));
            }
        };
        // What the class makes of the frequencies itself; it then knows no scaling.
        let divisors = match self.family.form {
            Form::Grid(Pairs::Centers) => Some(vec![0.5 / PI; rotary / 2]),
            Form::Grid(_) if kind.entry == GLOBAL => Some(vec![self.global_stretch()?; rotary / 2]),
            _ => self.measured_divisors(theta, rotary / 2)?,
        };
        let scaling = match (divisors, scaling) {
            (None, scaling) => scaling,
            (Some(divisors), Scaling::None) => Scaling::Divisors(divisors),
            _ => {
                return wrong(format!(
                    "rope_type is {scaling_kind:?}, model_type {:?} has default alone",
                    self.model_type
                ));
            }
        };
        let mut rope = Rope { offset, pairing, scaling, attention_factor, axes, ..Rope::new(rotary, theta) };
        match self.family.form {
            Form::Grid(Pairs::Centers) => rope.fraction_bits = vec![CENTER_BITS; 2],
            Form::Atoms => rope.fraction_bits = vec![ATOM_BITS, ATOM_BITS, ATOM_BITS, 0],
            _ => {}
        }

        for key in map.unasked() {
            if !KNOWN.contains(&key) {
                return wrong(format!("{} holds {key}, which this crate does not know", map.name()));
            }
            notes.push(format!("{}.{key} means nothing to rope_type {scaling_kind:?}", map.name()));
        }
        if matches!(self.family.form, Form::Skipping { temperature: true, .. }) {
            // asked for here as well, so that a model without unrotated layers may hold them
            let _ = (self.temperature()?, config.number("attn_scale")?, config.number("floor_scale")?);
        }
        let log_n = config.flag("use_logn_attn")?.unwrap_or(false);
        let query_scale = match (query_scale, log_n) {
            (QueryScale::One, true) => {
                let train_length = config.needed("seq_length", "use_logn_attn")?;
                QueryScale::LogN { train_length }
            }
            (scale, _) => scale,
        };
        Ok(Layer {
            label: kind.label.clone(),
            rope: Some(rope),
            head,
            logit_scale,
            query_scale,
            dual_chunk: self.dual_chunk()?,
            long_attention_factor,
        })
    }

    /// Qwen2.5-1M's `dual_chunk_attention_config`. Its other keys belong to the sparse attention that goes with it.
    fn dual_chunk(&self) -> Result<Option<DualChunk>> {
        let Some(map) = self.config.object("dual_chunk_attention_config")? else { return Ok(None) };
        let map = Keys::new("dual_chunk_attention_config", map);
        let count = |key: &str| match map.count(key)? {
            Some(count) => Ok(count as i64),
            None => wrong(format!("{key} is missing, dual_chunk_attention_config needs it")),
        };
        Ok(Some(DualChunk { chunk: count("chunk_size")?, local: count("local_size")? }))
    }

    /// Llama 4's `attn_temperature_tuning`: true where it is absent, and a number in early files.
    fn temperature(&self) -> Result<bool> {
        match self.config.get("attn_temperature_tuning") {
            None => Ok(true),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Number(number)) => Ok(number.as_f64() != Some(0.0)),
            Some(value) => wrong(format!("attn_temperature_tuning is {value}, it must be true or false")),
        }
    }

    fn pairing(&self) -> Result<Pairing> {
        if matches!(self.family.form, Form::Ratio) && self.two_axes()? || self.plain_attention()? {
            return Ok(Pairing::Half);
        }
        // DeepSeek's and GLM's flag, which other classes do not read; absent, the class decides.
        if !matches!(self.family.form, Form::Latent | Form::Skipping { latent: true, .. }) {
            return Ok(self.family.pairing);
        }
        Ok(match self.config.flag("rope_interleave")? {
            None => self.family.pairing,
            Some(true) => Pairing::Interleaved,
            Some(false) => Pairing::Half,
        })
    }

    /// ChatGLM of 6B: positions in the text and in the block, each with a half of the channels.
    fn two_axes(&self) -> Result<bool> {
        Ok(self.config.flag("position_encoding_2d")?.unwrap_or(false))
    }

    /// DeepSeek's config of a model without latent attention: Llama's.
    fn plain_attention(&self) -> Result<bool> {
        let plain = matches!(self.family.form, Form::Latent) && self.config.flag("use_mla")? == Some(false);
        if plain {
            // Sizes of what is not there.
            let _ = (self.config.get("qk_rope_head_dim"), self.config.get("qk_nope_head_dim"));
        }
        Ok(plain)
    }

    fn theta(&self, kind: &Kind, map: &Keys<'_>, merged: &Map<String, Value>, is_nested: bool) -> Result<f64> {
        let config = &self.config;
        let mut own: Option<(&str, f64)> = None;
        let listed_by_layer =
            matches!(self.family.form, Form::Lists) && matches!(config.get("rope_theta"), Some(Value::Array(_)));
        for key in self.family.theta_keys.iter().copied().chain(["rope_theta"]).filter(|_| !listed_by_layer) {
            let Some(theta) = config.number(key)? else { continue };
            match own {
                None if !self.family.theta_keys.contains(&key) => {
                    return wrong(format!(
                        "{key} is {theta}, model_type {:?} reads {} instead",
                        self.model_type,
                        self.family.theta_keys.join(" or ")
                    ));
                }
                Some((other, same)) if same != theta => {
                    return wrong(format!("{other} is {same} and {key} is {theta}, they must be the same"));
                }
                _ => own = own.or(Some((key, theta))),
            }
        }
        if let Some(key) = self.family.theta_in
            && let Some(object) = config.object(key)?
            && let Some(theta) = Keys::new(key, object).number("rope_theta")?
        {
            own = Some((key, theta));
        }
        let listed = map.number("rope_theta")?;
        // Beside entries for each layer type, the config's own theta is their default.
        if let (Some((key, own)), Some(listed), false, None) = (own, listed, is_nested, kind.theta)
            && own != listed
        {
            return wrong(format!("{key} is {own} and {}.rope_theta is {listed}, they must be the same", map.name()));
        }
        let ratio = match self.family.form {
            Form::Ratio => config.number("rope_ratio")?.unwrap_or(1.0),
            _ => 1.0,
        };
        let general = own.map(|(_, theta)| theta).or(if is_nested {
            None
        } else {
            Keys::new("rope_parameters", merged).number("rope_theta")?
        });
        let theta = if is_nested { listed.or(kind.theta) } else { kind.theta.or(listed) };
        Ok(theta.or(general).unwrap_or(self.family.theta) * ratio)
    }

    /// The head, the rotated channels, the first of them, and the share that the config gives.
    fn sizes(&self, kind: &Kind, map: &Keys<'_>, scaling_kind: &str) -> Result<(usize, usize, usize, f64)> {
        let config = &self.config;
        let mut share = config.number("partial_rotary_factor")?.map(|share| ("partial_rotary_factor", share));
        let keys = self.family.share_key.into_iter().chain(["rope_percent", "rotary_emb_fraction"]);
        for key in keys {
            if let Some(other) = config.number(key)? {
                share = Some((key, other));
            }
        }
        let listed = map.number("partial_rotary_factor")?;
        if let (Some((key, own)), Some(listed)) = (share, listed)
            && own != listed
            && !map.name().contains('.')
        {
            return wrong(format!(
                "{key} is {own} and {}.partial_rotary_factor is {listed}, they must be the same",
                map.name()
            ));
        }
        let given = kind.share.or(listed).or(share.map(|(_, share)| share));
        if matches!(self.family.form, Form::Grid(Pairs::AlternatingWhole)) {
            self.check_whole(given)?;
            let head = self.head()?;
            return Ok((head, head, 0, 1.0));
        }
        let reads_share = self.family.partial || scaling_kind == "proportional" || self.plain_attention()?;
        let share = given.unwrap_or(self.family.share);
        if !(share > 0.0 && share <= 1.0) {
            return wrong(format!("partial_rotary_factor is {share}, it must be above 0 and at most 1"));
        }
        let even = |rotary: usize, how: String| {
            if rotary > 0 && rotary.is_multiple_of(2) {
                return Ok(rotary);
            }
            wrong(format!("the rotary size is {rotary} ({how}), it must be even and at least 2"))
        };
        let latent = matches!(self.family.form, Form::Latent | Form::Skipping { latent: true, .. });
        // A share that a class does not read is no silence, unless it is the whole, or says what the sizes say.
        let unread = |rotary: usize, heads: &[usize]| {
            let Some(share) = given.filter(|&share| share != 1.0) else { return Ok(()) };
            if heads.iter().any(|&head| (head as f64 * share - rotary as f64).abs() < 1.0) {
                return Ok(());
            }
            wrong(format!(
                "partial_rotary_factor is {share}, the class of model_type {:?} rotates {rotary} of {} channels whatever it says",
                self.model_type, heads[0]
            ))
        };
        if latent && !self.plain_attention()? {
            let because = format!("model_type {:?}", self.model_type);
            let Some(rotary) = config.count("qk_rope_head_dim")? else {
                return wrong(format!("qk_rope_head_dim is missing, {because} needs it"));
            };
            let nope = match config.count("qk_nope_head_dim")? {
                Some(nope) => nope,
                None => return wrong(format!("qk_nope_head_dim is missing, {because} needs it")),
            };
            let nope = kind.nope.unwrap_or(nope);
            let rotary = even(rotary, "qk_rope_head_dim".into())?;
            unread(rotary, &[nope + rotary, config.count("head_dim")?.or(head(self.model_type)).unwrap_or(0)])?;
            return Ok((nope + rotary, rotary, nope, 1.0));
        }
        let mut head = match kind.head {
            Some(head) => head,
            None => self.head()?,
        };
        if kind.entry == "full_attention"
            && let Some(global) = config.count("global_head_dim")?.or(GEMMA4.contains(&self.model_type).then_some(512))
        {
            head = global;
        }
        if matches!(self.family.form, Form::Compressed) {
            let rotary = config.count("qk_rope_head_dim")?.unwrap_or(64);
            if rotary > head {
                return wrong(format!("qk_rope_head_dim is {rotary}, a head has {head} channels"));
            }
            let rotary = even(rotary, "qk_rope_head_dim".into())?;
            unread(rotary, &[head])?;
            return Ok((head, rotary, head - rotary, 1.0));
        }
        if matches!(self.family.form, Form::Grid(Pairs::Thirds)) {
            let rotary = head / 3 / 2 * 6;
            unread(rotary, &[head])?;
            return Ok((head, even(rotary, format!("three times {} of a head of {head}", head / 3 / 2 * 2))?, 0, 1.0));
        }
        if matches!(self.family.form, Form::Clvp) {
            let heads = config.count("num_attention_heads")?.unwrap_or(12);
            let projection = config.count("projection_dim")?.unwrap_or(768);
            let rotary = projection.checked_div(2 * heads).unwrap_or(0).max(32);
            if rotary > head {
                return wrong(format!(
                    "projection_dim {projection} gives {rotary} rotated channels, a head has {head}"
                ));
            }
            unread(rotary, &[head])?;
            return Ok((head, even(rotary, format!("of projection_dim {projection}"))?, 0, 1.0));
        }
        if matches!(self.family.form, Form::Ratio) && self.two_axes()? {
            return Ok((head, even(head, "head_dim".into())?, 0, 1.0));
        }
        if matches!(self.family.form, Form::Ratio) {
            return Ok((head, even(head / 2, format!("half of the head's {head}"))?, 0, 0.5));
        }
        if !reads_share && self.family.share_key.is_none() {
            unread(head, &[head])?;
        }
        // A count says what a share only comes near to: 44 * (30 / 44) is below 30.
        let mut rotary_dim = config.count("rotary_dim")?;
        if self.model_type == "gptj" || self.model_type == "codegen" {
            rotary_dim = rotary_dim.or(Some(64));
        }
        let rotary = match rotary_dim {
            Some(rotary) => {
                if rotary > head {
                    return wrong(format!("rotary_dim is {rotary}, a head has {head} channels"));
                }
                if let Some(share) = given
                    && (head as f64 * share - rotary as f64).abs() >= 1.0
                {
                    return wrong(format!(
                        "rotary_dim is {rotary} and partial_rotary_factor {share} of a head of {head}, they must agree"
                    ));
                }
                even(rotary, "rotary_dim".into())?
            }
            None if scaling_kind == "proportional" => even(head, "head_dim".into())?,
            // Windows and frames have the share each.
            None if matches!(self.family.form, Form::Seconds) => {
                let each = (head as f64 * share) as usize;
                even(
                    2 * even(each, format!("{share} of {head} channels"))?,
                    format!("twice {share} of {head} channels"),
                )?
            }
            None => {
                let rotary = (head as f64 * share) as usize;
                let how = if share == 1.0 { "the head's".into() } else { format!("{share} of a head of {head}") };
                even(rotary, how)?
            }
        };
        Ok((head, rotary, 0, share))
    }

    fn axes(&self, map: &Keys<'_>, pairs: usize) -> Result<Axes> {
        if let Some(axes) = self.measured_axes(pairs)? {
            return Ok(axes);
        }
        let default = match &self.family.form {
            Form::Axes(axes) | Form::HybridAxes(axes, _) => Some(axes.axes()),
            Form::Grid(Pairs::Thirds) => return Ok(Axes::Ladders(vec![pairs / 3; 3])),
            Form::Grid(_) if !pairs.is_multiple_of(2) => {
                return wrong(format!("a head's {pairs} pairs are not shared equally by rows and columns"));
            }
            Form::Grid(Pairs::Ladders | Pairs::Centers | Pairs::Memory) => {
                return Ok(Axes::Ladders(vec![pairs / 2; 2]));
            }
            Form::Grid(Pairs::Alternating | Pairs::AlternatingWhole) => return Ok(Axes::Alternating(2)),
            Form::Grid(Pairs::Dealt) => return Ok(Axes::Dealt(2)),
            Form::Grid(Pairs::Blocks) => return Ok(Axes::Blocks(2)),
            Form::Ratio if self.two_axes()? => return Ok(Axes::Blocks(2)),
            _ => self.family.axes.map(ClassAxes::axes),
        };
        let interleaved = map.flag("mrope_interleaved")?;
        // Hunyuan's name of it.
        let sections = match (map.counts("mrope_section")?, map.counts("xdrope_section")?) {
            (Some(sections), Some(other)) if sections != other => {
                return wrong(format!(
                    "mrope_section is {sections:?} and xdrope_section {other:?}, they must be the same"
                ));
            }
            (sections, other) => sections.or(other),
        };
        let Some(sections) = sections else {
            return match default {
                None => Ok(Axes::One),
                Some(axes) => Ok(axes),
            };
        };
        let sum = sections.iter().sum::<usize>();
        if sum != pairs {
            return wrong(format!(
                "mrope_section is {sections:?} and sums to {sum}, the rotary part has {pairs} pairs"
            ));
        }
        Ok(match (default, interleaved) {
            (Some(Axes::HeightWidthFirst(_)), None | Some(false)) => match sections[..] {
                [height, width, time] => Axes::HeightWidthFirst([time, height, width]),
                _ => {
                    return wrong(format!(
                        "mrope_section is {sections:?}, model_type {:?} has 3 axes",
                        self.model_type
                    ));
                }
            },
            (Some(Axes::Interleaved(_)), None) | (_, Some(true)) => Axes::Interleaved(sections),
            _ => Axes::Sections(sections),
        })
    }
}
