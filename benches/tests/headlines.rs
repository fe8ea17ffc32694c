//! The cases that a run on a GPU measures first.

use posenc_benches::{Goal, HEADLINES, ROOMS, cases, goal};

#[test]
fn every_headline_is_a_case_and_comes_first() {
    for room in ROOMS {
        let cases = cases(room);
        let wanted = HEADLINES.iter().filter(|(of, ..)| *of == room).count();
        assert!(wanted > 0, "{room} has no headline");
        for (i, case) in cases.iter().enumerate() {
            assert_eq!(goal(room, &case.name).is_some(), i < wanted, "{room}/{} is case {i}", case.name);
        }
    }
}

#[test]
fn a_goal_is_reached_from_its_side() {
    assert_eq!(Goal::Share(0.95).verdict(0.96, 50.0), ", wanted 0.95: reached");
    assert_eq!(Goal::Share(0.95).verdict(0.94, 50.0), ", wanted 0.95: MISSED");
    assert_eq!(Goal::EmptyKernels(1.2).verdict(0.1, 1.2), ", wanted 1.2 empty kernels: reached");
    assert_eq!(Goal::EmptyKernels(1.2).verdict(0.1, 1.3), ", wanted 1.2 empty kernels: MISSED");
    assert_eq!(Goal::Seen.verdict(0.1, 1.3), "");
}
