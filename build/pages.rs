//! The README and the pages of `docs` as documentation of the crate: links between them lead to modules, pictures are in the text.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Pages that are modules of `posenc::docs`.
pub const PAGES: [&str; 9] =
    ["encodings", "embed", "rotate", "prologue", "bias", "attend", "safety", "architecture", "decisions"];

/// Writes the front page and each page of `root` into `folder`.
pub fn write(root: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let picture = |name: &str| read(&root.join(name)).ok().filter(|text| text.starts_with("<svg"));
    let readme = read(&root.join("README.md"))?;
    // The crate's own first line says it shorter.
    let front = readme.split_once('\n').map_or("", |(_, rest)| rest);
    fs::write(folder.join("front.md"), translated(front, "docs/", "docs/", picture))?;
    for page in PAGES {
        let text = read(&root.join(format!("docs/{page}.md")))?;
        fs::write(folder.join(format!("{page}.md")), translated(&text, "", "../", |_| None))?;
    }
    Ok(())
}

/// A page whose links to pages, which begin with `prefix` here, lead to modules, which lie in `modules` there. Of a link to anything
/// else in the repository the text remains.
pub fn translated(text: &str, prefix: &str, modules: &str, picture: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    // Code has no links.
    for (i, part) in text.split("```").enumerate() {
        if i > 0 {
            out += "```";
        }
        if i % 2 == 1 {
            out += part;
            continue;
        }
        let mut rest = part;
        while let Some((before, label, target, after)) = next_link(rest) {
            let target = Target::of(target, prefix, modules);
            if let (Some(text), Target::Nowhere(name)) = (before.strip_suffix('!'), &target) {
                out += text;
                out += &picture(name).unwrap_or_else(|| label.into());
            } else {
                out += before;
                match target {
                    Target::Nowhere(_) => out += label,
                    Target::Link(link) => out += &format!("[{label}]({link})"),
                }
            }
            rest = after;
        }
        out += rest;
    }
    out
}

/// Where a link leads.
enum Target<'a> {
    /// to a file that is not in the documentation
    Nowhere(&'a str),
    Link(String),
}

impl<'a> Target<'a> {
    fn of(target: &'a str, prefix: &str, modules: &str) -> Self {
        if target.starts_with('#') || target.contains("://") {
            return Self::Link(target.into());
        }
        let (file, anchor) =
            target.split_once('#').map_or((target, String::new()), |(file, id)| (file, format!("#{id}")));
        let page = file.strip_prefix(prefix).and_then(|name| name.strip_suffix(".md"));
        match page.filter(|page| PAGES.contains(page)) {
            Some(page) => Self::Link(format!("{modules}{page}/index.html{anchor}")),
            None => Self::Nowhere(file),
        }
    }
}

/// The first `[label](target)`: what is before it, both parts, what is behind it.
fn next_link(text: &str) -> Option<(&str, &str, &str, &str)> {
    let middle = text.find("](")?;
    let start = text[..middle].rfind('[')?;
    let end = middle + text[middle..].find(')')?;
    Some((&text[..start], &text[start + 1..middle], &text[middle + 2..end], &text[end + 1..]))
}
