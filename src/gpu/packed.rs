//! How images lie in the crate: as LZMA streams, a fifth of their size. The build script reads this file too.

use std::io::Read;

use lzma_rust2::LzmaReader;

/// The bytes of a packed image; `None` if it is damaged or cut short.
pub fn unpacked(packed: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    LzmaReader::new_mem_limit(packed, u32::MAX, None).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
