//! Generated input for what reads the world. `cargo xtask fuzz` builds and starts it.
//!
//! A target passes while nothing panics, aborts, hangs or answers wrongly. What fails is shrunk and printed; before each input the
//! target's file in `target/fuzz` gets it, so that an abort leaves it behind.

mod c;
mod gguf;
mod models;
mod ptx;
mod shapes;

use std::cell::Cell;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// What takes the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// `config.json` and `params.json`, mutated
    Models,
    /// GGUF files, mutated
    Gguf,
    /// strided shapes against sets of indices
    Shapes,
    /// the kernels' PTX, mutated, loaded into the emulator
    Ptx,
    /// the C library, called with random structs
    C,
    /// the same on the CPU
    CCpu,
}

#[derive(Parser)]
#[command(about = "Generated input for configs, GGUF, shapes, PTX and the C library")]
struct Options {
    /// All of them, if none is named
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// For each target
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// The same inputs again; without it, new ones each time
    #[arg(long)]
    seed: Option<u64>,
    /// The shared object of the C library
    #[arg(long, default_value = "target/debug/libposenc_c.so")]
    library: PathBuf,
}

/// One run of a target.
struct Run {
    name: &'static str,
    seed: u64,
    end: Instant,
}

impl Run {
    /// Checks inputs until the time is over. `check` says whether the input was accepted, which the figures count.
    fn of<S: Strategy>(&self, inputs: &S, check: impl Fn(&S::Value) -> Result<bool, String>) -> Result<()>
    where
        S::Value: Debug,
    {
        // What takes longer than this hangs, where a user waits for it.
        const LONG: Duration = Duration::from_secs(10);
        let file = PathBuf::from("target/fuzz").join(self.name);
        std::fs::create_dir_all("target/fuzz")?;
        let (tried, accepted, longest) = (Cell::new(0u64), Cell::new(0u64), Cell::new(Duration::ZERO));
        for round in 0u64.. {
            if Instant::now() >= self.end {
                break;
            }
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&self.seed.to_le_bytes());
            seed[8..16].copy_from_slice(&round.to_le_bytes());
            let config = Config { cases: 32, failure_persistence: None, ..Config::default() };
            let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
            let result = runner.run(inputs, |input| {
                std::fs::write(&file, format!("seed {}, round {round}\n{input:#?}\n", self.seed))
                    .map_err(|error| TestCaseError::fail(error.to_string()))?;
                let begun = Instant::now();
                let answer = check(&input).map_err(TestCaseError::fail)?;
                longest.set(longest.get().max(begun.elapsed()));
                if begun.elapsed() > LONG {
                    return Err(TestCaseError::fail(format!("it took {:?}", begun.elapsed())));
                }
                tried.set(tried.get() + 1);
                accepted.set(accepted.get() + u64::from(answer));
                Ok(())
            });
            match result {
                Ok(()) => {}
                Err(TestError::Fail(reason, input)) => {
                    bail!("{} with seed {}: {reason}\n{input:#?}", self.name, self.seed)
                }
                Err(TestError::Abort(reason)) => bail!("{}: {reason}", self.name),
            }
        }
        println!(
            "{:<7} {:>8} inputs, {:>8} accepted, the longest took {:.2?} (seed {})",
            self.name,
            tried.get(),
            accepted.get(),
            longest.get(),
            self.seed
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let targets = if options.targets.is_empty() { Target::value_variants() } else { &options.targets };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    for target in targets {
        let run = |name| Run {
            name,
            seed: options.seed.unwrap_or(now.as_secs()),
            end: Instant::now() + Duration::from_secs(options.seconds),
        };
        match target {
            Target::Models => models::fuzz(&run("models"))?,
            Target::Gguf => gguf::fuzz(&run("gguf"))?,
            Target::Shapes => shapes::fuzz(&run("shapes"))?,
            Target::Ptx => ptx::fuzz(&run("ptx"))?,
            Target::C => c::fuzz(&run("c"), &options.library, false)?,
            Target::CCpu => c::fuzz(&run("c-cpu"), &options.library, true)?,
        }
    }
    Ok(())
}
