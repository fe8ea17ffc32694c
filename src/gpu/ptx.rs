//! PTX for one architecture, out of the text that NVRTC makes for several. The build script uses it too.

use std::fmt::Write as _;

/// Architectures that images are made for, with the lowest PTX version that their instructions need: a driver accepts PTX
/// up to its own version, so a lower one loads on older drivers.
pub const ARCHITECTURES: [(u32, &str); 5] = [(75, "6.3"), (80, "7.0"), (90, "7.8"), (100, "8.6"), (120, "8.7")];

/// Inline assembly for the architecture `sm`. A line that begins with `//sm_80+ ` is for 8.0 and later ones, a line that begins
/// with `//sm_80- ` for those before it. To NVRTC both are comments, so that one PTX serves every architecture.
pub fn choose(text: &str, sm: u32) -> String {
    let mut parts = text.split("//sm_");
    let mut chosen = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (from, line) = part.split_at(digits);
        let later = from.parse().is_ok_and(|from: u32| sm >= from);
        match line.strip_prefix(if later { "+ " } else { "- " }) {
            Some(line) => chosen += line,
            None => write!(chosen, "//{line}").unwrap_or_default(),
        }
    }
    chosen
}

/// The text for one architecture. NVRTC states its own PTX version; what the instructions need is older. The one newer thing,
/// `used_bytes_mask` (8.3), is a hint for tools that look for uninitialised reads, and goes.
pub fn for_architecture(ptx: &str, sm: u32, version: &str) -> String {
    let mut text = String::with_capacity(ptx.len());
    for line in choose(ptx, sm).lines().map(str::trim) {
        if line.starts_with(".version ") {
            writeln!(text, ".version {version}").unwrap_or_default();
        } else if line.starts_with(".target ") {
            writeln!(text, ".target sm_{sm}").unwrap_or_default();
        } else if !line.starts_with(".pragma \"used_bytes_mask") && !line.starts_with("//") {
            text += line;
            text.push('\n');
        }
    }
    text
}
