//! The programs of `docs/c.md` compile without a warning; those with a `main` run on the CPU.

mod support;

use std::process::Command;

use support::{compiler, library, root, run};

/// The fenced blocks of a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn programs_of_the_page_work() {
    let page = std::fs::read_to_string(root().join("../../docs/c.md")).expect("docs/c.md");
    for (language, standard, count, said) in [
        ("c", "c11", 2, "-0.999361, the truth is -0.999361\n"),
        ("cpp", "c++17", 1, "scale is 0, it must be finite and above 0\n"),
    ] {
        let programs = blocks(&page, language);
        assert_eq!(programs.len(), count, "{language}");
        for (i, program) in programs.iter().enumerate() {
            let path = std::env::temp_dir().join(format!("posenc-docs-{i}-{}.{language}", std::process::id()));
            std::fs::write(&path, program).expect("the program is written");
            let built = path.with_extension("");
            let mut compile = compiler(standard);
            if !program.contains("int main") {
                run(compile.arg("-fsyntax-only").arg(&path));
            } else {
                run(compile.arg(&path).arg("-o").arg(&built).arg("-L").arg(library()).args(["-lposenc_c", "-lm"]));
                assert_eq!(run(Command::new(&built).env("LD_LIBRARY_PATH", library())), said, "{program}");
                std::fs::remove_file(built).expect("the program goes");
            }
            std::fs::remove_file(path).expect("its source goes");
        }
    }
}
