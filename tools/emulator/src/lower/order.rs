//! The order of a function's blocks: every block after those that lead to it, loops in one piece.
//!
//! The interpreter runs the split with the lowest place first, so this order alone decides where diverged lanes meet.
//! Strongly connected components are laid out in topological order; inside one, edges back to its head are dropped and
//! the rest is ordered in the same way.

/// Loops nested deeper than this keep the order of the text.
const DEEPEST: u32 = 64;

/// The order in which to emit blocks, given the successors of each. Block 0 is the entry.
pub(crate) fn order(successors: &[Vec<usize>]) -> Vec<usize> {
    let all: Vec<usize> = (0..successors.len()).collect();
    let mut out = Vec::with_capacity(all.len());
    arrange(&all, successors, None, DEEPEST, &mut out);
    out
}

/// Orders `nodes`; edges to `head` are ignored.
fn arrange(nodes: &[usize], successors: &[Vec<usize>], head: Option<usize>, depth: u32, out: &mut Vec<usize>) {
    if depth == 0 {
        out.extend_from_slice(nodes);
        return;
    }
    for component in components(nodes, successors, head) {
        if component.len() == 1 {
            out.push(component[0]);
            continue;
        }
        // the head of a loop is where it is entered; in text order that is its first block
        let first = component.iter().copied().min().unwrap_or(component[0]);
        let entered = component
            .iter()
            .copied()
            .filter(|&n| nodes.iter().any(|&p| !component.contains(&p) && successors[p].contains(&n)));
        let first = entered.min().unwrap_or(first);
        let mut rest = vec![first];
        rest.extend(component.iter().copied().filter(|&n| n != first));
        rest[1..].sort_unstable();
        arrange(&rest, successors, Some(first), depth - 1, out);
    }
}

/// Strongly connected components in topological order (Tarjan, without recursion).
fn components(nodes: &[usize], successors: &[Vec<usize>], head: Option<usize>) -> Vec<Vec<usize>> {
    const UNSEEN: u32 = u32::MAX;
    let size = successors.len();
    let mut inside = vec![false; size];
    for &n in nodes {
        inside[n] = true;
    }
    let (mut index, mut low, mut on_stack) = (vec![UNSEEN; size], vec![0u32; size], vec![false; size]);
    let (mut stack, mut found, mut time) = (Vec::new(), Vec::new(), 0u32);
    // roots in reverse, because the result is reversed at the end: the text's order is kept where edges leave it free
    for &root in nodes.iter().rev().chain(nodes.first()) {
        if index[root] != UNSEEN {
            continue;
        }
        // the entry must come first, so it is the last root to be finished
        let mut work = vec![(root, 0usize)];
        while let Some(&(n, edge)) = work.last() {
            if edge == 0 {
                index[n] = time;
                low[n] = time;
                time += 1;
                stack.push(n);
                on_stack[n] = true;
            }
            let mut next = None;
            let mut at = edge;
            while at < successors[n].len() && next.is_none() {
                let m = successors[n][at];
                at += 1;
                if !inside[m] || Some(m) == head {
                    continue;
                }
                if index[m] == UNSEEN {
                    next = Some(m);
                } else if on_stack[m] {
                    low[n] = low[n].min(index[m]);
                }
            }
            if let Some(m) = next {
                if let Some(top) = work.last_mut() {
                    top.1 = at;
                }
                work.push((m, 0));
                continue;
            }
            work.pop();
            if let Some(&(parent, _)) = work.last() {
                low[parent] = low[parent].min(low[n]);
            }
            if low[n] == index[n] {
                let mut component = Vec::new();
                while let Some(m) = stack.pop() {
                    on_stack[m] = false;
                    component.push(m);
                    if m == n {
                        break;
                    }
                }
                found.push(component);
            }
        }
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn a_join_comes_after_both_sides() {
        // 0 -> 1, 2; 1 -> 3; 2 -> 3
        let place = order(&[vec![2, 1], vec![3], vec![3], vec![]]);
        assert_eq!(place[0], 0);
        assert_eq!(place[3], 3);
    }

    #[test]
    fn a_loop_is_one_piece_before_its_exit() {
        // 0 -> 1; 1 (head) -> 4 (exit), 2; 2 -> 3; 3 -> 1; the exit stands before the body in no order
        let place = order(&[vec![1], vec![4, 2], vec![3], vec![1], vec![]]);
        assert_eq!(place, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_slow_path_at_the_end_of_the_text_comes_before_the_join() {
        // 0 -> 3 (slow, last in the text), 1; 1 -> 2; 3 -> 2
        let place = order(&[vec![3, 1], vec![2], vec![], vec![2]]);
        let at = |n| place.iter().position(|&x| x == n).unwrap();
        assert!(at(3) < at(2), "{place:?}");
    }
}
