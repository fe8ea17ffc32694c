//! Which head was read for each head that was written.

use super::sample::Sample;

/// For each head that was written, the head that was read: the one whose vectors have the same lengths.
///
/// A rotation keeps the length of a vector up to one factor, so that logarithms of lengths differ by a constant.
pub fn map(sample: &Sample) -> Vec<usize> {
    let heads = sample.heads;
    let tokens = sample.some(64);
    let length = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().max(f64::MIN_POSITIVE).ln() / 2.0;
    let lengths = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
        (0..heads).map(|head| tokens.iter().map(|&token| of(token, head)).collect()).collect()
    };
    let before = lengths(&|token, head| length(sample.x(token, head)));
    let after = lengths(&|token, head| length(sample.y(token, head)));
    // How far two heads are apart; of a single token the factor cannot be told from the difference.
    let apart = |written: usize, read: usize| {
        let differences = after[written].iter().zip(&before[read]).map(|(a, b)| a - b);
        let mean = if tokens.len() > 1 { differences.clone().sum::<f64>() / tokens.len() as f64 } else { 0.0 };
        differences.map(|it| (it - mean).powi(2)).sum::<f64>() / tokens.len() as f64
    };
    let identity: Vec<f64> = (0..heads).map(|head| apart(head, head)).collect();
    (0..heads)
        .map(|written| {
            let costs = (0..heads).map(|read| (read, apart(written, read)));
            let (read, least) = costs.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((written, 0.0));
            // The same head unless another fits far better: lengths of a partly scaled vector vary a little.
            if least * 25.0 < identity[written] { read } else { written }
        })
        .collect()
}

/// A map that is not the identity, in words.
pub fn words(map: &[usize]) -> Option<String> {
    let heads = map.len();
    if map.iter().enumerate().all(|(written, &read)| written == read) {
        return None;
    }
    if heads > 1 && map.iter().all(|read| *read == map[0]) {
        return Some(format!("every head is made from head {}", map[0]));
    }
    if map.iter().enumerate().all(|(written, &read)| read == heads - 1 - written) {
        return Some("heads are in reverse order".into());
    }
    let shift = (map[0] + heads) % heads;
    if map.iter().enumerate().all(|(written, &read)| read == (written + shift) % heads) {
        return Some(format!("head h is made from head h + {shift} modulo {heads}"));
    }
    for groups in (2..heads).filter(|groups| heads.is_multiple_of(*groups)) {
        let size = heads / groups;
        if map.iter().enumerate().all(|(written, &read)| read == written % groups * size + written / groups) {
            return Some(format!("heads are interleaved: {groups} groups of {size} heads are dealt out in turn"));
        }
        if map.iter().enumerate().all(|(written, &read)| read == written / size * size) {
            return Some(format!("{size} heads in a row are made from the first of them"));
        }
    }
    let wrong: Vec<_> = map.iter().enumerate().filter(|(written, read)| written != *read).collect();
    let listed: Vec<_> =
        wrong.iter().take(4).map(|(written, read)| format!("head {written} from head {read}")).collect();
    let more = if wrong.len() > 4 { format!(" and {} more", wrong.len() - 4) } else { String::new() };
    Some(format!("heads are mixed up: {}{more}", listed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn maps_have_names() {
        let of = |map: &[usize]| words(map).unwrap_or_default();
        assert_eq!(of(&[0, 1, 2]), "");
        assert_eq!(of(&[2, 1, 0]), "heads are in reverse order");
        assert_eq!(of(&[1, 2, 0]), "head h is made from head h + 1 modulo 3");
        assert_eq!(of(&[0, 3, 1, 4, 2, 5]), "heads are interleaved: 2 groups of 3 heads are dealt out in turn");
        assert_eq!(of(&[0, 0, 2, 2]), "2 heads in a row are made from the first of them");
        assert_eq!(of(&[3, 3, 3, 3]), "every head is made from head 3");
        assert_eq!(of(&[1, 0, 2, 3]), "heads are mixed up: head 0 from head 1, head 1 from head 0");
    }
}
