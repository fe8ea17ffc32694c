//! A bias by distance as an argument or a file says it.

use anyhow::{Context, Result, bail, ensure};
use posenc::bias::{Fire, Kerple, KerpleKind, Sandwich, Slopes, T5Bias, Toeplitz};
use posenc::{Alibi, Bias};
use serde::{Deserialize, Serialize};

/// A bias of distance: the serde form of the crate's spec, and the table that T5 learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Law {
    Alibi(Alibi),
    Slopes(Slopes),
    T5(T5),
    Kerple(Kerple),
    Sandwich(Sandwich),
    Fire(Fire),
    Toeplitz(Toeplitz),
}

/// T5's buckets and what is learned for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5 {
    pub buckets: T5Bias,
    /// columns of the table
    pub heads: usize,
    /// `[buckets, heads]`
    pub table: Vec<f32>,
}

/// What arguments may say.
pub const FORMS: &str = "alibi=HEADS, sandwich=HEADS, kerple-log=P,A, kerple-power=P,A, t5=BUCKETS,MAX_DISTANCE, \
                         t5-causal=BUCKETS,MAX_DISTANCE or a JSON file of a spec";

impl Law {
    /// One of [`FORMS`]. Without a table, T5's number of a bucket is the bucket's index.
    pub fn parse(text: &str) -> Result<Self> {
        let law = match text.split_once('=') {
            Some((name, numbers)) => Self::short(name, numbers).with_context(|| format!("{text:?}"))?,
            None => {
                let json = std::fs::read_to_string(text).with_context(|| format!("cannot read {text}"))?;
                serde_json::from_str(&json).with_context(|| text.to_string())?
            }
        };
        law.check().with_context(|| text.to_string())?;
        Ok(law)
    }

    fn short(name: &str, numbers: &str) -> Result<Self> {
        let numbers = numbers
            .split(',')
            .map(|number| number.trim().parse::<f64>().with_context(|| format!("{number:?} is no number")));
        let numbers = numbers.collect::<Result<Vec<_>>>()?;
        let whole = |number: f64| {
            ensure!(
                number.fract() == 0.0 && (0.0..=65535.0).contains(&number),
                "{number} is not a whole number up to 65535"
            );
            Ok(number as usize)
        };
        Ok(match (name, &numbers[..]) {
            ("alibi", &[heads]) => Self::Alibi(Alibi::new(whole(heads)?)),
            ("sandwich", &[heads]) => Self::Sandwich(Sandwich::new(whole(heads)?)),
            ("kerple-log", &[p, a]) => Self::Kerple(Kerple { kind: KerpleKind::Log, p: vec![p], a: vec![a] }),
            ("kerple-power", &[p, a]) => Self::Kerple(Kerple { kind: KerpleKind::Power, p: vec![p], a: vec![a] }),
            ("t5" | "t5-causal", &[buckets, most]) => {
                let buckets = T5Bias::new(whole(buckets)?, whole(most)?, name == "t5");
                let table = (0..buckets.buckets).map(|bucket| bucket as f32).collect();
                Self::T5(T5 { buckets, heads: 1, table })
            }
            _ => bail!("not one of {FORMS}"),
        })
    }

    /// A network of FIRE for examples: two hidden units, two heads.
    pub fn example_fire() -> Self {
        Self::Fire(Fire {
            c: 0.1,
            threshold: 16.0,
            in_weight: vec![1.0, 1.0],
            in_bias: vec![0.0, -0.5],
            out_weight: vec![-2.0, -4.0, -6.0, 4.0],
            out_bias: vec![0.5, -0.25],
            ..Fire::new()
        })
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Alibi(alibi) => alibi.check()?,
            Self::Slopes(slopes) => {
                Slopes::new(slopes.heads, &slopes.left, &slopes.right)?;
            }
            Self::T5(t5) => {
                t5.buckets.row(&t5.table, t5.heads)?;
            }
            Self::Kerple(kerple) => kerple.check()?,
            Self::Sandwich(sandwich) => sandwich.check()?,
            Self::Fire(fire) => fire.check()?,
            Self::Toeplitz(row) => row.check()?,
        }
        Ok(())
    }

    pub fn heads(&self) -> usize {
        match self {
            Self::Alibi(alibi) => alibi.heads,
            Self::Slopes(slopes) => slopes.heads,
            Self::T5(t5) => t5.heads,
            Self::Kerple(kerple) => kerple.p.len(),
            Self::Sandwich(sandwich) => sandwich.heads,
            Self::Fire(fire) => fire.heads(),
            Self::Toeplitz(row) => row.heads,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Alibi(_) => "ALiBi",
            Self::Slopes(_) => "slopes",
            Self::T5(_) => "T5",
            Self::Kerple(Kerple { kind: KerpleKind::Log, .. }) => "KERPLE log",
            Self::Kerple(_) => "KERPLE power",
            Self::Sandwich(_) => "Sandwich",
            Self::Fire(_) => "FIRE",
            Self::Toeplitz(_) => "row of distances",
        }
    }

    /// The numbers as the crate's softmax takes them, for distances within `reach`.
    pub fn made(&self, reach: i64) -> Result<Made> {
        Ok(match self {
            Self::Alibi(alibi) => Made::Slopes(alibi.slopes()?),
            Self::Slopes(slopes) => Made::Slopes(slopes.clone()),
            Self::T5(t5) => Made::Row(t5.buckets.row(&t5.table, t5.heads)?),
            Self::Kerple(kerple) => Made::Row(kerple.row(-reach..=reach)?),
            Self::Sandwich(sandwich) => Made::Row(sandwich.row(-reach..=reach)?),
            Self::Fire(fire) => Made::Fire(fire.clone()),
            Self::Toeplitz(row) => Made::Row(row.clone()),
        })
    }
}

/// Numbers of a bias, owned.
pub enum Made {
    Slopes(Slopes),
    Row(Toeplitz),
    Fire(Fire),
}

impl Made {
    pub fn bias(&self) -> Bias<'_> {
        match self {
            Self::Slopes(slopes) => Bias::Slopes(slopes),
            Self::Row(row) => Bias::Toeplitz(row),
            Self::Fire(fire) => Bias::Fire(fire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_specs() {
        assert_eq!(Law::parse("alibi=8").expect("a law"), Law::Alibi(Alibi::new(8)));
        let Law::T5(t5) = Law::parse("t5=32,128").expect("a law") else { panic!("T5") };
        assert_eq!((t5.buckets, t5.table.len()), (T5Bias::new(32, 128, true), 32));
        assert_eq!(Law::parse("kerple-log=1,0.5").expect("a law").heads(), 1);
    }

    #[test]
    fn what_is_no_law_is_refused() {
        for (text, error) in [
            ("alibi=0", "alibi=0: total_heads is 0, it must be at least 1"),
            ("alibi=1.5", "\"alibi=1.5\": 1.5 is not a whole number up to 65535"),
            ("alibi=x", "\"alibi=x\": \"x\" is no number"),
            ("kerple-power=3,1", "kerple-power=3,1: p of head 0 is 3, a power is at most 2"),
        ] {
            assert_eq!(
                format!("{:#}", Law::parse(text).expect_err(text)),
                error.replace(": \"x\" is no number", ": \"x\" is no number: invalid float literal")
            );
        }
        let error = format!("{:#}", Law::parse("rope=3").expect_err("no bias"));
        assert!(error.starts_with("\"rope=3\": not one of alibi=HEADS"), "{error}");
    }
}
