//! Ropes whose positions are measured: coordinates of atoms, seconds of sound.

use std::f64::consts::PI;

use super::super::keys::{Keys, wrong};
use super::Reader;
use super::families::Form;
use crate::Result;
use crate::rotate::Axes;

/// Fraction bits of an atom's coordinate: 1e-6 of the unit, the angstrom.
pub(super) const ATOM_BITS: u32 = 20;
/// A divisor that stops a pair, and that JSON has a number for.
const STILL: f64 = 1e30;

/// Pairs of an atom's head: of each coordinate, of the residue's number, and those that are not rotated.
struct AtomPairs {
    each: usize,
    uid: usize,
    still: usize,
}

impl Reader<'_> {
    /// The part of a model's config that the type names, if it is one beside the language model.
    pub(super) fn part_of(as_type: Option<&str>) -> Option<&'static str> {
        match as_type {
            Some("esmfold2_atom_encoder") => Some("atom_encoder"),
            _ => None,
        }
    }

    /// The head of ESMFold2's atoms and of MusicFlamingo's sound.
    pub(super) fn measured_head(&self) -> Result<Option<usize>> {
        let config = &self.config;
        match self.family.form {
            Form::Atoms => {
                if let Some(head) = config.count("head_dim")? {
                    return Ok(Some(head));
                }
                let hidden = config.count("hidden_size")?.unwrap_or(128);
                let heads = config.count("num_attention_heads")?.unwrap_or(4);
                if heads == 0 || hidden % heads != 0 {
                    return wrong(format!("hidden_size {hidden} does not divide into {heads} heads"));
                }
                Ok(Some(hidden / heads))
            }
            Form::Seconds => {
                let audio = match config.object("audio_config")? {
                    Some(audio) => Keys::new("audio_config", audio).count("hidden_size")?,
                    None => None,
                };
                Ok(Some(audio.unwrap_or(1280)))
            }
            _ => Ok(None),
        }
    }

    fn atom_pairs(&self, pairs: usize) -> Result<AtomPairs> {
        let config = &self.config;
        let each = config.count("num_spatial_rope_pairs_per_axis")?.unwrap_or(2);
        let uid = config.count("num_uid_rope_pairs")?.unwrap_or(10);
        let turned = each.saturating_mul(3).saturating_add(uid);
        match pairs.checked_sub(turned) {
            Some(still) => Ok(AtomPairs { each, uid, still }),
            None => wrong(format!("atoms turn {turned} pairs, a head has {pairs}")),
        }
    }

    /// The axes of a measured position.
    pub(super) fn measured_axes(&self, pairs: usize) -> Result<Option<Axes>> {
        Ok(match self.family.form {
            Form::Atoms => {
                let AtomPairs { each, uid, still } = self.atom_pairs(pairs)?;
                Some(Axes::Ladders(vec![each, each, each, uid + still]))
            }
            Form::Seconds => Some(Axes::Ladders(vec![pairs / 2; 2])),
            _ => None,
        })
    }

    /// What divides the frequency of each pair.
    pub(super) fn measured_divisors(&self, theta: f64, pairs: usize) -> Result<Option<Vec<f64>>> {
        let config = &self.config;
        Ok(match self.family.form {
            Form::Atoms => {
                let AtomPairs { each, uid, still } = self.atom_pairs(pairs)?;
                let base = config.number("uid_rope_base_frequency")?.unwrap_or(10_000.0);
                // The ladder goes on by the coordinates' base; these have one of their own.
                let of_uid =
                    |pair: usize| base.powf(pair as f64 / uid as f64) / theta.powf(pair as f64 / (uid + still) as f64);
                let mut list = vec![1.0; 3 * each];
                list.extend((0..uid).map(of_uid));
                list.resize(pairs, STILL);
                Some(list)
            }
            Form::Seconds => {
                let step = 4.0 * config.number("audio_frame_step")?.unwrap_or(0.01);
                if step.is_nan() || step <= 0.0 {
                    return wrong(format!("audio_frame_step is {}, it must be above 0", step / 4.0));
                }
                // Minus 2 pi seconds, times the window or 2 pi times the frame, over the longest sequence, which is theta.
                let window = -theta / (2.0 * PI * step);
                let mut list = vec![window; pairs / 2];
                list.resize(pairs, window / (2.0 * PI));
                Some(list)
            }
            _ => None,
        })
    }
}
