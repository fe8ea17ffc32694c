//! `posenc shell`: completions and the manual page.

use std::io::Write;

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::{Outcome, Program};

/// Print completions for a shell, or the manual page
///
/// Examples:
///   posenc shell bash > ~/.local/share/bash-completion/completions/posenc
///   posenc shell zsh > ~/.zfunc/_posenc
///   posenc shell man > ~/.local/share/man/man1/posenc.1
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// what is printed
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Bash,
    Elvish,
    Fish,
    PowerShell,
    Zsh,
    /// the manual page, all commands in it
    Man,
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    let mut command = Program::command();
    let shell = match options.what {
        What::Bash => Shell::Bash,
        What::Elvish => Shell::Elvish,
        What::Fish => Shell::Fish,
        What::PowerShell => Shell::PowerShell,
        What::Zsh => Shell::Zsh,
        What::Man => {
            command.build();
            clap_mangen::Man::new(command.clone()).render(out)?;
            for subcommand in command.get_subcommands().filter(|it| it.get_name() != "help") {
                let name = format!("posenc-{}", subcommand.get_name());
                let manual = clap_mangen::Man::new(subcommand.clone().display_name(name));
                manual.render_name_section(out)?;
                manual.render_synopsis_section(out)?;
                manual.render_description_section(out)?;
                manual.render_options_section(out)?;
            }
            return Ok(Outcome::Same);
        }
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "posenc", &mut text);
    out.write_all(&text)?;
    Ok(Outcome::Same)
}
