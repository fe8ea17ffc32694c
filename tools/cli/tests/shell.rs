//! What a shell asks for: help, completions, the manual page, and nothing but text in a pipe.

mod support;

use std::path::Path;

use support::posenc;

/// Commands, from the program's own help.
fn commands() -> Vec<String> {
    let help = posenc(Path::new("."), &["--help"]).ends(0);
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("commands");
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_help_with_examples_and_is_in_the_manual_and_the_completions() {
    let commands = commands();
    assert!(commands.contains(&"diff".to_string()), "{commands:?}");
    let manual = posenc(Path::new("."), &["shell", "man"]).ends(0);
    let bash = posenc(Path::new("."), &["shell", "bash"]).ends(0);
    for command in &commands {
        let help = posenc(Path::new("."), &[command, "--help"]).ends(0);
        assert!(help.contains("Examples:\n  posenc "), "{help}");
        assert!(!help.contains('\u{1b}'), "colour in a pipe: {help}");
        assert!(manual.contains(&format!("posenc\\-{command}")), "the manual lacks {command}");
        assert!(bash.contains(&format!("posenc__{command}")) || bash.contains(command), "completions lack {command}");
    }
    for shell in ["zsh", "fish", "elvish", "power-shell"] {
        assert!(posenc(Path::new("."), &["shell", shell]).ends(0).contains("posenc"), "{shell}");
    }
    assert!(manual.contains("Exit status: 0"), "{manual}");
}

#[test]
fn bad_usage_ends_with_2_and_prints_nothing() {
    for arguments in [&[][..], &["nothing"], &["diff", "a.npy"], &["diff", "--what"]] {
        let text = posenc(Path::new("."), arguments).fails();
        assert!(text.contains("Usage:"), "{text}");
    }
}
