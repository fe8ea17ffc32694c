//! The commands of pages: they run, print what the page says, and draw the committed pictures.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{npy, posenc};

const PAGES: [&str; 3] = ["gallery", "choosing", "diagnosing"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A command of a page, and the output that the page shows below it.
struct Shown {
    arguments: Vec<String>,
    output: Option<String>,
}

/// Commands of the page's `sh` blocks, a line each, and of the `text` block that follows a block of one command.
fn commands(page: &str) -> Vec<Shown> {
    let text = fs::read_to_string(root().join(format!("docs/{page}.md"))).expect("a page");
    let mut commands: Vec<Shown> = Vec::new();
    for block in text.split("```").skip(1).step_by(2) {
        if let Some(lines) = block.strip_prefix("sh\n") {
            let lines = lines.replace("\\\n", "");
            for line in lines.lines() {
                let Some(arguments) = line.strip_prefix("posenc ") else { continue };
                let arguments = arguments.split_whitespace().map(String::from).collect();
                commands.push(Shown { arguments, output: None });
            }
        } else if let (Some(output), Some(command)) = (block.strip_prefix("text\n"), commands.last_mut()) {
            command.output = Some(output.to_string());
        }
    }
    commands
}

/// Files that pages take for the reader's own.
fn measurements(folder: &Path) {
    let loss: Vec<f32> = (0..2 * 64).map(|token| if token % 64 < 48 { 2.0 } else { 5.0 }).collect();
    npy(folder, "loss.npy", &[2, 64], &loss);
    let uniform = |row: usize| (0..64).map(move |key| if key <= row { 1.0 / (row + 1) as f32 } else { 0.0 });
    npy(folder, "attention.npy", &[1, 64, 64], &(0..64).flat_map(uniform).collect::<Vec<_>>());
    npy(folder, "ours.npy", &[4], &[1.0, 2.0, 3.0, 4.0]);
    npy(folder, "theirs.npy", &[4], &[1.0, 2.0, 3.0, 4.5]);
}

/// Set: the pictures are written instead of compared.
fn blesses() -> bool {
    std::env::var_os("POSENC_BLESS").is_some()
}

#[test]
fn commands_of_pages_run_and_draw_the_committed_pictures() {
    let (mut ran, mut stale) = (0, Vec::new());
    for page in PAGES {
        let folder = tempfile::tempdir().expect("a folder");
        let (data, copy) = (root().join("docs/gallery"), folder.path().join("docs/gallery"));
        fs::create_dir_all(&copy).expect("a folder");
        for entry in fs::read_dir(&data).expect("docs/gallery") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|ending| ending != "svg") {
                fs::copy(&path, copy.join(path.file_name().expect("a name"))).expect("a copy");
            }
        }
        measurements(folder.path());
        for Shown { arguments, output } in commands(page) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            // The page's two engines differ.
            let status = i32::from(arguments[0] == "diff");
            let printed = posenc(folder.path(), &arguments).ends(status);
            if let Some(output) = output {
                assert_eq!(printed, output, "docs/{page}.md: posenc {}", arguments.join(" "));
            }
            ran += 1;
            let Some(picture) =
                arguments.iter().find(|argument| argument.starts_with("docs/gallery/") && argument.ends_with(".svg"))
            else {
                continue;
            };
            let (drawn, committed) = (folder.path().join(picture), root().join(picture));
            if blesses() {
                fs::copy(&drawn, &committed).expect("a picture");
            }
            let same = fs::read(&committed).is_ok_and(|committed| committed == fs::read(&drawn).expect("a picture"));
            if !same {
                stale.push((*picture).to_string());
            }
        }
    }
    assert!(ran >= 18, "{ran} commands");
    assert!(stale.is_empty(), "differ from what their commands draw (POSENC_BLESS=1 draws them): {stale:?}");
}

/// Every committed picture is drawn by a command of the gallery, is shown there, and is small.
#[test]
fn every_picture_is_shown_with_its_command() {
    let page = fs::read_to_string(root().join("docs/gallery.md")).expect("the gallery");
    let mut pictures = 0;
    for entry in fs::read_dir(root().join("docs/gallery")).expect("docs/gallery") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_string();
        if name.ends_with(".svg") {
            assert!(page.contains(&format!("-o docs/gallery/{name}\n")), "{name} has no command");
            assert!(page.contains(&format!("](gallery/{name})")), "{name} is not shown");
            let bytes = fs::metadata(&path).expect("a size").len();
            assert!(bytes < 50_000, "{name} is {bytes} bytes");
            pictures += 1;
        } else {
            assert!(page.contains(&format!("gallery/{name}")), "{name} is used by no command");
        }
    }
    assert!(pictures >= 8, "{pictures} pictures");
}

/// The costs of docs/choosing.md are those that are counted. `POSENC_BLESS=1` writes them.
#[test]
fn counts_of_the_page_are_the_committed_ones() {
    let path = root().join("docs/choosing.md");
    let page = fs::read_to_string(&path).expect("the page");
    let counts = fs::read_to_string(root().join("benches/tests/counts.csv")).expect("the counts");
    let mut cases = 0;
    let lines = page.lines().map(|line| {
        let Some(name) =
            line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).filter(|name| name.contains("/bf16/"))
        else {
            return line.to_string();
        };
        let counted = counts.lines().find(|line| line.split(',').next() == Some(name));
        let counted: Vec<&str> = counted.unwrap_or_else(|| panic!("{name} is no case")).split(',').collect();
        cases += 1;
        format!("| `{name}` | {} | {} | {} | {} |", counted[5], counted[6], counted[3], counted[4])
    });
    let written = lines.collect::<Vec<_>>().join("\n") + "\n";
    if blesses() {
        fs::write(&path, &written).expect("the page");
    }
    assert!(written == page || blesses(), "POSENC_BLESS=1 writes the counts:\n{written}");
    assert!(cases >= 8, "{cases} cases");
}
