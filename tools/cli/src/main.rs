//! The program `posenc`: what a model does with positions, and what another engine did with a tensor.

mod apply;
mod bench;
mod check;
mod diff;
mod explain;
mod inspect;
mod judge;
mod law;
mod op;
mod plan;
mod plot;
mod progress;
mod shares;
mod shell;
mod tensors;
mod ulp;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What a model does with positions, and which convention rotated a tensor
#[derive(Parser)]
#[command(name = "posenc", version, after_help = EXIT_CODES, max_term_width = 120)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit status: 0 if the command ran and what it compared is equal, 1 if it differs or is not explained, 2 if an argument or a file
cannot be used.";

/// What a command found, which becomes the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// ran, or compared as equal: 0
    Same,
    /// compared as different, or not explained: 1
    Differs,
}

/// Declares the subcommands. Each is a module with `Options`, whose doc comment is the help, and
/// `run(Options, &mut dyn Write) -> Result<Outcome>`, which prints to the writer.
macro_rules! commands {
    ($($name:ident => $module:ident,)*) => {
        #[derive(Subcommand)]
        enum Command {
            $($name($module::Options),)*
        }

        impl Command {
            fn run(self, out: &mut dyn Write) -> Result<Outcome> {
                match self {
                    $(Self::$name(options) => $module::run(options, out),)*
                }
            }
        }
    };
}

commands! {
    Apply => apply,
    Bench => bench,
    Check => check,
    Diff => diff,
    Explain => explain,
    Inspect => inspect,
    Plan => plan,
    Plot => plot,
    Shell => shell,
}

fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = Program::parse().command.run(&mut out).and_then(|outcome| Ok(out.flush().map(|()| outcome)?));
    match outcome {
        Ok(Outcome::Same) => ExitCode::SUCCESS,
        Ok(Outcome::Differs) => ExitCode::from(1),
        // The reader of a pipe has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // What was printed before the error stays before it.
            let _ = out.flush();
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// clap's own check of names, short options and defaults of every command.
    #[test]
    fn the_commands_fit_together() {
        super::Program::command().debug_assert();
    }
}
