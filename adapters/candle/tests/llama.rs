//! A Llama of candle-transformers beside one whose rope is posenc's.

#![allow(missing_docs, reason = "a test")]

use candle_core::{DType, Result};

#[path = "../examples/llama.rs"]
mod llama;

use llama::{Llama, PROMPT, apart, candle, exact, generate, in_f64};

/// With the rope alone replaced, the same 40 tokens come out, by logits that differ by roundings of f32.
#[test]
fn same_tokens_at_short_positions() -> Result<()> {
    let (theirs, their_logits) = generate(candle()?, 0, &PROMPT, 40)?;
    let mut model = Llama::new(DType::F32, exact()?)?;
    let (ours, our_logits) = generate(|tokens, position| model.forward(tokens, position), 0, &PROMPT, 40)?;
    assert_eq!(ours, theirs);
    let difference = apart(&our_logits, &their_logits);
    assert!(difference < 1e-4, "{difference}");
    // Not all tokens are one.
    assert!(ours.iter().any(|token| *token != ours[0]), "{ours:?}");
    Ok(())
}

/// At position 100,000 posenc's logits are still those of the model in f64, candle's are not.
#[test]
fn exact_at_far_positions() -> Result<()> {
    let mut truth = Llama::new(DType::F64, in_f64())?;
    let (_, want) = generate(|tokens, position| truth.forward(tokens, position), 100_000, &PROMPT, 0)?;
    let (_, theirs) = generate(candle()?, 100_000, &PROMPT, 0)?;
    let mut model = Llama::new(DType::F32, exact()?)?;
    let (_, ours) = generate(|tokens, position| model.forward(tokens, position), 100_000, &PROMPT, 0)?;
    let (ours, theirs) = (apart(&ours, &want), apart(&theirs, &want));
    assert!(ours < 2e-5, "{ours}");
    assert!(theirs > 50.0 * ours, "{theirs} and {ours}");
    Ok(())
}
