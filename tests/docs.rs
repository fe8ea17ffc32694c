//! Links between the pages: README.md, CHANGELOG.md and docs/**/*.md. No device and no kernels are needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut pages, mut folders) = (vec![root.join("README.md"), root.join("CHANGELOG.md")], vec![root.join("docs")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// Lines of a page outside fenced code blocks.
fn prose(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("```").step_by(2).collect()
}

/// Anchors of a page: `<a id="name">`, and GitHub's slug of each heading.
fn anchors(prose: &str) -> BTreeSet<String> {
    let mut anchors: BTreeSet<String> =
        prose.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
    for heading in prose.lines().filter(|line| line.starts_with('#')) {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

#[test]
fn every_relative_link_reaches_a_file_and_an_anchor() {
    let mut broken = Vec::new();
    for page in pages() {
        let prose = prose(&page);
        let without_code: String = prose.split('`').step_by(2).collect();
        let links = without_code.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            if !target.exists() || !anchor.is_empty() && !anchors(&self::prose(&target)).contains(anchor) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// README is also the crate's front page, where a relative link leads nowhere: it names the pages in code spans.
#[test]
fn every_page_that_readme_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = prose(&root.join("README.md"));
    let named: Vec<&str> = readme.split('`').skip(1).step_by(2).filter(|span| span.starts_with("docs/")).collect();
    let missing: Vec<_> = named.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(missing.is_empty(), "README.md names {missing:?}");
}

/// Listings of docs/adding-an-encoding.md that open with a file's name stand in that file, and so do the files of its table.
#[test]
fn the_worked_example_is_what_the_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/adding-an-encoding.md")).expect("the page");
    let mut listings = 0;
    for listing in page.split("```").skip(1).step_by(2) {
        let text = listing.split_once('\n').map_or("", |(_, text)| text);
        let Some((name, code)) = text.strip_prefix("// ").and_then(|text| text.split_once('\n')) else { continue };
        let file = fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(file.contains(code), "{name} does not hold the listing\n{code}");
        listings += 1;
    }
    assert!(listings >= 7, "{listings} listings were found");
    let steps = page.lines().filter(|line| line.starts_with("| ") && line.contains(". "));
    let named: Vec<_> = steps.flat_map(|line| line.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() >= 7, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(missing.is_empty(), "docs/adding-an-encoding.md names {missing:?}");
}
