//! What each way to take position in costs, in memory and in bytes that a token moves in a layer.

use posenc::model::{LogitBias, PositionEmbedding};
use posenc::{ModelPositions, ModelRope};
use serde::Serialize;

use super::sizes::Sizes;

/// One way to take position in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub way: &'static str,
    /// the model has it
    pub own: bool,
    /// bytes that are held for a layer, whatever the batch
    pub memory: f64,
    /// bytes read and written for a token in a layer; an embedding's once in a model
    pub per_token: f64,
}

/// Bytes of an element of the model: bf16 or f16.
const ELEMENT: f64 = 2.0;
/// Bytes of f32.
const FLOAT: f64 = 4.0;
/// Bytes of a frequency as a fraction of a turn.
const RATE: f64 = 8.0;

/// One row for each way whose sizes the config states.
pub fn table(model: &ModelPositions, rope: &ModelRope, sizes: &Sizes, length: u64) -> Vec<Cost> {
    let length = length as f64;
    let mut rows = Vec::new();
    let mut push = |way, own, memory, per_token| rows.push(Cost { way, own, memory, per_token });
    let hidden = sizes.hidden.map(|n| n as f64);
    let query_heads = sizes.query_heads.map(|n| n as f64);
    let rotation = rope.kinds().iter().find_map(|kind| kind.rope.as_ref());
    let rotary = rotation.map(|it| it.rotary).or(rope.kinds().first().map(|kind| kind.head)).unwrap_or(0) as f64;
    let kinds = |is: fn(&LogitBias) -> bool| {
        (0..rope.layers().unwrap_or(1)).any(|index| model.layer(index).is_ok_and(|it| it.bias.is_some_and(is)))
    };
    if let (Some(query_heads), true) = (query_heads, rotary > 0.0) {
        let key_heads = sizes.key_heads.map_or(query_heads, |n| n as f64);
        let moved = 2.0 * (query_heads + key_heads) * rotary * ELEMENT;
        let own = rotation.is_some();
        push("rotation, angles computed", own, rotary / 2.0 * RATE, moved);
        push("rotation, table of cosines and sines in f32", own, length * rotary * FLOAT, moved + rotary * FLOAT);
    }
    if let Some(hidden) = hidden {
        let learned = matches!(model.embedding(), Some(PositionEmbedding::Learned { .. }));
        let sinusoid = matches!(model.embedding(), Some(PositionEmbedding::Sinusoid(_)));
        push("embedding, learned table", learned, length * hidden * ELEMENT, hidden * ELEMENT);
        push("embedding, sinusoids computed", sinusoid, 0.0, 0.0);
    }
    if let Some(heads) = query_heads {
        push("bias, ALiBi's slopes, in the softmax", kinds(|it| matches!(it, LogitBias::Alibi(_))), heads * FLOAT, 0.0);
        let rows = (2.0 * length - 1.0) * heads * FLOAT;
        push(
            "bias, a row by distance, in the softmax",
            kinds(|it| matches!(it, LogitBias::T5 { .. })),
            rows,
            length * heads * FLOAT,
        );
        push("bias, written as [heads, L, L]", false, length * length * heads * ELEMENT, length * heads * ELEMENT);
    }
    rows
}
