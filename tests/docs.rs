//! Links between the pages: README.md, CHANGELOG.md and docs/**/*.md. No device and no kernels are needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../build/pages.rs"]
mod pages;

fn all_pages() -> Vec<PathBuf> {
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
    for page in all_pages() {
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

/// The front page's code is not cut: a line of docs.rs holds 80 characters.
#[test]
fn lines_of_code_fit_the_width_of_a_page() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let code = readme.split("```").skip(1).step_by(2);
    let long: Vec<_> = code.flat_map(str::lines).filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty(), "{long:?}");
    let rust = readme.split("```rust").skip(1).filter_map(|rest| rest.split("```").next());
    let hidden: Vec<_> = rust.flat_map(str::lines).filter(|line| line.starts_with("# ")).collect();
    assert!(hidden.is_empty(), "GitHub shows {hidden:?}");
}

/// Every page but those for contributors is linked from the README.
#[test]
fn readme_links_every_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = prose(&root.join("README.md"));
    for entry in fs::read_dir(root.join("docs")).expect("docs") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(
            !name.ends_with(".md") || readme.contains(&format!("](docs/{name})")),
            "README.md does not link {name}"
        );
    }
}

/// In the crate's documentation every link leads to a module of a page and to an anchor of it, and the picture is there.
#[test]
fn links_between_pages_lead_to_modules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pages-{}", std::process::id()));
    pages::write(root, &folder).expect("pages");
    let mut links = 0;
    for name in pages::PAGES.into_iter().chain(["front"]) {
        let text = prose(&folder.join(format!("{name}.md")));
        let without_code: String = text.split('`').step_by(2).collect();
        for link in without_code.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let Some((page, anchor)) = link.split_once("/index.html") else {
                assert!(link.starts_with('#') || link.contains("://"), "{name}: {link}");
                continue;
            };
            let page = page.strip_prefix(if name == "front" { "docs/" } else { "../" }).expect(link);
            let anchor = anchor.trim_start_matches('#');
            let target = prose(&root.join(format!("docs/{page}.md")));
            assert!(pages::PAGES.contains(&page), "{name}: {link}");
            assert!(anchor.is_empty() || anchors(&target).contains(anchor), "{name}: {link}");
            links += 1;
        }
    }
    let front = prose(&folder.join("front.md"));
    fs::remove_dir_all(folder).expect("the folder goes");
    assert!(links > 50, "{links} links");
    assert!(front.contains("<svg") && !front.contains("!["), "the picture is missing");
    assert!(!front.contains("(CONTRIBUTING.md)") && front.contains("contributing"), "a link that leads nowhere");
}

/// Anchors that documentation of the code links to are in the pages.
#[test]
fn links_from_code_reach_their_sections() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut links) = (vec![root.join("src")], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            for link in text.split("crate::docs::").skip(1).filter_map(|rest| rest.split([')', ']', '`']).next()) {
                let (page, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = prose(&root.join(format!("docs/{page}.md")));
                assert!(anchor.is_empty() || anchors(&target).contains(anchor), "{}: {link}", path.display());
                links += 1;
            }
        }
    }
    assert!(links >= 20, "{links} links");
}

/// `tests/examples.rs` runs each example but the one that reads its command line.
#[test]
fn every_example_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for entry in fs::read_dir(folder).expect("examples") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        let is_run = include_str!("examples.rs").contains(&format!("\"../examples/{name}\""));
        assert!(is_run || name == "02_describe.rs", "{name} is not run");
    }
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
