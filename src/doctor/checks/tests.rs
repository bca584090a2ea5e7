use super::*;
use crate::doctor::State;

#[test]
fn a_clock_is_good_within_a_minute_and_nothing_is_read_beyond_a_day() {
    let check = |seconds| check_clock(Some(TimeDelta::seconds(seconds)));
    assert_eq!(check(0), Finding::good("the service's clock agrees with ours (within 2s)"));
    assert_eq!(check(-60), Finding::good("the service's clock is 1m behind ours"));
    for (seconds, says) in [
        (61, "1m1s ahead of ours"),
        (-7200, "cannot be compared"),
        (7200, "its events are not counted"),
        (-90_000, "nothing is read"),
    ] {
        let found = check(seconds);
        assert_eq!(found.state, State::Wrong, "{seconds}");
        assert!(found.text.contains(says), "{}", found.text);
    }
    assert_eq!(check_clock(None).state, State::Note);
}

#[test]
fn a_budget_is_too_small_where_polls_need_more_than_it_earns_between_them() {
    let common = Common::usual(Duration::from_hours(24));
    assert_eq!(polls_allow(&common), 60);
    let states = |needed, remaining| {
        let found = check_budget(&common, needed, 3, remaining);
        found.into_iter().map(|finding| finding.state).collect::<Vec<_>>()
    };
    assert_eq!(states(60, None), [State::Good]);
    assert_eq!(states(61, Some(7.0)), [State::Wrong, State::Good]);
}

#[test]
fn a_credential_that_ends_within_two_weeks_is_to_be_replaced() {
    let now = DateTime::UNIX_EPOCH;
    let check = |days| check_expiry(Some(now + TimeDelta::days(days)), now).map(|found| found.state);
    assert_eq!((check(14), check(15)), (Some(State::Wrong), Some(State::Good)));
    assert_eq!(check_expiry(None, now), None);
}

#[test]
fn what_a_clock_stamps_that_was_set_back_is_said_not_to_be_counted() {
    let now = DateTime::UNIX_EPOCH;
    assert!(check_set_back(now, Some(now + TimeDelta::hours(1))).is_some());
    assert_eq!(check_set_back(now, Some(now)), None);
    assert_eq!(check_set_back(now, None), None);
}
